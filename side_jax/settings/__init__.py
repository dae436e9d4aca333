"""All settings of a run: names, meanings, defaults and limits.

These dataclasses are the only list of settings: target.py has those of the audited model, classifiers.py those of
SIDE's pseudo-labels and classifiers, extraction.py those of the attacks, evaluation.py those of the evaluation and the
report, track.py where curves are drawn. The comment of a field is its entry in the settings reference (reference.py).
config.py turns the dataclasses into the ConfigDict that the files in configs/ override, and back. Defaults suit small
images.
"""

import dataclasses
import json
from typing import Any

from side_jax.attacks.table import ADAPTED, ATTACKS, NOISE, TWIN, Run, known_classifiers
from side_jax.diffusion.mode_seeking import noise_range
from side_jax.diffusion.schedule import time_grid
from side_jax.memorization.metrics import METRICS
from side_jax.models import label_table
from side_jax.settings.checks import check, one_of
from side_jax.settings.classifiers import ClassifierFit, Label, Network, Surrogate, Synthesize, held_back
from side_jax.settings.evaluation import Evaluate, Report
from side_jax.settings.extraction import LABEL, Adapters, BlackBox, BlackBoxModes, Extract, Modes, Sampler, Weak
from side_jax.settings.target import OBJECT, OWN, Condition, Data, Diffusion, Fit, Model, Monitor, Target, Train
from side_jax.settings.track import Track

__all__ = [
    "Adapters",
    "BlackBox",
    "ClassifierFit",
    "Condition",
    "Data",
    "Diffusion",
    "Evaluate",
    "Extract",
    "Fit",
    "Label",
    "Model",
    "Modes",
    "Monitor",
    "Network",
    "Report",
    "Sampler",
    "Settings",
    "Surrogate",
    "Synthesize",
    "Target",
    "Track",
    "Train",
    "Weak",
    "held_back",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of an audit."""

    name: str = "audit"  # shown in the report
    seed: int = 0  # of all random numbers: split, training, sampling and evaluation
    data: Data = Data()
    target: Target = Target()
    diffusion: Diffusion = Diffusion()
    model: Model = Model()
    condition: Condition = Condition()
    train: Train = Train()
    monitor: Monitor = Monitor()
    sampler: Sampler = Sampler()
    synthesize: Synthesize = Synthesize()
    label: Label = Label()
    classifier: Network = Network()
    surrogate: Surrogate = Surrogate()
    conditional: ClassifierFit = ClassifierFit()
    extract: Extract = Extract()
    modes: Modes = Modes()
    black_box: BlackBox = BlackBox()
    black_box_modes: BlackBoxModes = BlackBoxModes()
    weak: Weak = Weak()
    adapters: Adapters = Adapters()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    track: Track = Track()

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "at least 0")
        need = (
            "the location of images that the model in target.path never saw, with data.path holding only images it "
            "was trained on: a model trained elsewhere allows no random split"
        )
        ok = not self.target.path or bool(self.data.heldout_from)
        check(ok, "data.heldout_from", self.data.heldout_from, need)
        self._check_condition()
        self._check_label_scan()
        data, halvings = self.data, len(self.model.block_out_channels) - 1
        sides = {"data.image_size": data.shape[0], "data.image_width": data.shape[1]}
        need = f"divisible by {2**halvings}, since the U-Net of {halvings + 1} levels halves it {halvings} times"
        for name, side in sides.items():
            check(side % 2**halvings == 0 or bool(self.target.network), name, side, need)
        n_syn = self.synthesize.num_images
        need = f"at most synthesize.num_images ({n_syn}): every cluster needs an image"
        check(self.label.num_clusters <= n_syn, "label.num_clusters", self.label.num_clusters, need)
        steps = self.diffusion.num_timesteps
        if self.label.features == "denoiser":
            levels = range(halvings + 1)
            named = () if self.target.network else (f"{side}_blocks_{i}" for side in ("down", "up") for i in levels)
            blocks = ("mid_block", *named)
            one_of("label.denoiser_block", self.label.denoiser_block, blocks)
            value, need = self.label.denoiser_timestep, f"below diffusion.num_timesteps ({steps})"
            check(value < steps, "label.denoiser_timestep", value, need)
        need = f"at most diffusion.num_timesteps ({steps})"
        for section in ("sampler", "extract"):
            value = getattr(self, section).num_steps
            check(value <= steps, f"{section}.num_steps", value, need)
        self._check_guidance()
        self._check_modes()
        self._check_rounds()
        self._check_search()
        members, heldout = data.counts
        need = f"at most data.num_members ({members})"
        ok = self.train.batch_size <= members or bool(self.target.path)
        check(ok, "train.batch_size", self.train.batch_size, need)
        for attack in self.extract.attacks:
            guide = ATTACKS[attack].classifier
            need = f"at most data.num_heldout ({heldout}), the images that extract.attacks = {attack} clusters"
            ok = not guide or guide.images != "heldout" or self.label.num_clusters <= heldout
            check(ok, "label.num_clusters", self.label.num_clusters, need)
        self._check_weak(n_syn)
        self._check_adapters(n_syn)
        counts = {"members": members, "heldout": heldout, "synthetic": n_syn}
        for name in self.extract.classifiers:
            section, count = known_classifiers()[name].section, counts[known_classifiers()[name].images]
            size, most = getattr(self, section).batch_size, count - held_back(count)
            need = f"at most {most}: {name} learns from {count} images, and a tenth is held back"
            check(size <= most, f"{section}.batch_size", size, need)
        self._check_measure()

    @property
    def guided_sampler(self) -> Sampler:
        """The sampler of guided attacks: `sampler`, overridden by extract.solver and extract.num_steps where set."""
        options: dict[str, Any] = {"solver": self.extract.solver, "num_steps": self.extract.num_steps}
        return dataclasses.replace(self.sampler, **{name: value for name, value in options.items() if value})

    @property
    def trains_weak(self) -> bool:
        """Whether a weaker model is trained on synthetic images."""
        return self.extract.needs_weak and not self.weak.step

    @property
    def needs_synthetic(self) -> bool:
        """Whether any network learns from synthetic images."""
        return self.extract.needs_pseudo_labels or self.trains_weak

    def runs(self) -> list[Run]:
        """Every run of every attack."""
        return self.extract.runs(self.modes, self.black_box_modes, self.adapters)

    @property
    def search_genome(self) -> str:
        """What the black-box search changes, one of extraction.GENOMES."""
        mixes = self.condition.num_labels >= 2 and self._has_label_table
        return self.black_box.genome or (LABEL if mixes else NOISE)

    @property
    def uses_features(self) -> bool:
        """Whether evaluation compares images by label.features."""
        return self.evaluate.distribution or any(metric.needs_features for metric in self.evaluate.make_metrics())

    def _check_condition(self) -> None:
        labels, data, attacks = self.condition.labels, self.data, self.extract.attacks
        own = bool(self.target.path)
        need = "empty while target.path is set: the model was trained with its own labels, or none"
        check(not own or labels in ("", OWN), "condition.labels", labels, need)
        need = "one of your own data's while target.path is empty"
        check(own or labels != OWN, "condition.labels", labels, need)
        count = self.condition.num_labels
        members, _ = data.counts
        need = f"at most data.num_members ({members}): every label needs a member"
        check(own or count <= members, "condition.num_labels", count, need)
        needs_derivatives = [attack for attack in attacks if ATTACKS[attack].at_x0]
        need = f"without {', '.join(needs_derivatives)}: a Python object has values, not the derivatives that it needs"
        value_only = self.target.format == OBJECT
        check(not (value_only and needs_derivatives), "extract.attacks", attacks, need)
        need = "False: a Python object has values, not the derivatives that the likelihood needs"
        check(not (value_only and self.evaluate.divergence), "evaluate.divergence", True, need)
        need = "another kind: a Python object has values, not the activations that these are"
        check(not (value_only and self.label.features == "denoiser"), "label.features", self.label.features, need)
        guided = ", ".join(attack for attack in attacks if ATTACKS[attack].own_labels)
        need = f"without {guided}: the model in target.path always needs a label, so plain sampling has labels"
        check(self.condition.null_label or not guided, "extract.attacks", attacks, need)
        need = (
            f"without {guided} while condition.labels is empty: set condition.labels and condition.num_labels "
            "to train the model with labels"
        )
        unread = own and not self.target.sha256  # which labels its model has is not known yet
        ok = bool(labels) or unread or not guided
        check(ok, "extract.attacks", attacks, need)

    def _check_label_scan(self) -> None:
        count, labels = self.evaluate.label_images, self.condition.labels
        need = "0 while condition.labels is empty: an unconditional model has no labels to scan"
        check(count == 0 or bool(labels), "evaluate.label_images", count, need)

    def _check_guidance(self) -> None:
        e, eta = self.extract, self.sampler.eta
        ok = eta == 0 or e.solver in ("", "ddim")
        check(ok, "extract.solver", e.solver, f"empty or ddim while sampler.eta is {eta:g}: this solver draws no noise")
        ok = e.guidance_form == "score" or eta > 0
        need = f"score while sampler.eta is {eta:g}: the mean forms scale with the variance of the sampling noise"
        check(ok, "extract.guidance_form", e.guidance_form, need)
        if e.guidance_interval:
            low, high = e.guidance_interval
            grid = time_grid(self.diffusion.make(), self.guided_sampler.num_steps, self.sampler.spacing)
            need = f"an interval that contains a timestep of the sampler: {', '.join(map(str, grid))}"
            ok = bool(((low <= grid) & (grid <= high)).any())
            check(ok, "extract.guidance_interval", e.guidance_interval, need)

    def _check_modes(self) -> None:
        attacks, modes = self.extract.attacks, self.modes
        need = "without those of the twin while target.path is set: an imported model's training can't be repeated"
        check(not (self.extract.needs_twin and self.target.path), "extract.attacks", attacks, need)
        labels = self.condition.labels
        need = f"'', random or single with the attack {TWIN.name}, whose images are not those that the labels are of"
        check(not self.extract.needs_twin or labels in ("", "random", "single"), "condition.labels", labels, need)
        members, heldout = self.data.counts
        need = f"without those of the twin, which needs as many held-out images as members ({members})"
        check(not self.extract.needs_twin or heldout >= members, "data.num_heldout", heldout, need)
        for attack in attacks:
            start = ATTACKS[attack].starts_from
            need = f"with {start}, from whose images {attack} starts"
            check(start in ("", *attacks), "extract.attacks", attacks, need)
        if any(ATTACKS[attack].renoises for attack in attacks):
            steps, need = self.black_box_modes.last_steps, f"at most sampler.num_steps ({self.sampler.num_steps})"
            check(max(steps) <= self.sampler.num_steps, "black_box_modes.last_steps", steps, need)
        if not any(ATTACKS[attack].seeks_modes and not ATTACKS[attack].renoises for attack in attacks):
            return
        missing = [start for start in modes.starts if start not in (NOISE, *attacks)]
        need = f"among extract.attacks ({', '.join(attacks)}) or {NOISE}: mode seeking starts from their images"
        check(not missing, "modes.starts", modes.starts, need)
        # The spread of images in [-1, 1] is at most 1; builders.mode_noise_levels checks again when it is known.
        low, _ = noise_range(self.diffusion.make())
        need = f"at least {low:.3g}, the lowest noise of the model, also in the last round"
        check(min(modes.noise_levels) * modes.last_noise >= low, "modes.noise_levels", modes.noise_levels, need)

    def _check_rounds(self) -> None:
        """Of mode seeking before the clusters and before the fit of adapters; as of modes.noise_levels."""
        low, _ = noise_range(self.diffusion.make())
        need = f"at least {low:.3g}, the lowest noise of the model"
        label, adapters = self.extract.clusters_images, self.extract.needs_adapters
        for name, noise, rounds in (
            ("label", self.label.noise, label * self.label.rounds),
            ("adapters", self.adapters.noise, adapters * self.adapters.all_rounds),
        ):
            check(not rounds or noise >= low, f"{name}.noise", noise, need)

    def _check_search(self) -> None:
        if not (attack := self.extract.searches):
            return
        genome, labels = self.black_box.genome, self.condition.num_labels
        if self.search_genome == LABEL and not (self.target.path and not self.target.sha256):
            need = f"noise, or empty: label embeddings are mixed of at least two labels, and the model has {labels}"
            check(labels >= 2, "black_box.genome", genome, need)
            need = f"noise, or empty: the labels of this model, a {self._networks[-1]}, are no rows of a table"
            check(self._has_label_table, "black_box.genome", genome, need)
        if self.search_genome == NOISE:
            need = f"0 with {attack}, which searches starting noise: an image must follow from it alone"
            check(self.sampler.eta == 0, "sampler.eta", self.sampler.eta, need)
            need = f"without {attack} over noise: the model in target.path always needs a label, which children change"
            ok = not self.condition.labels or self.condition.null_label
            check(ok, "extract.attacks", self.extract.attacks, need)
        first = self.black_box.searches * self.black_box.population
        need = f"at least {first} with {attack}: the first generations (black_box.population) of black_box.searches"
        check(self.extract.num_images >= first, "extract.num_images", self.extract.num_images, need)

    def _check_weak(self, synthetic: int) -> None:
        if not self.extract.needs_weak:
            return
        step, train = self.weak.step, self.train
        attack = next(attack for attack in self.extract.attacks if ATTACKS[attack].weak)
        need = f"without {attack}: no weaker model of latents is trained here"
        check("Latent" not in self._networks, "extract.attacks", self.extract.attacks, need)
        need = "0 while target.path is set: an imported model has no earlier checkpoints"
        check(not (step and self.target.path), "weak.step", step, need)
        need = f"0, or a multiple of train.checkpoint_every ({train.checkpoint_every}) below train.num_steps"
        ok = step % train.checkpoint_every == 0 and step < train.num_steps
        check(ok or bool(self.target.path), "weak.step", step, need)
        need = "True with weak.step: only then is the checkpoint of that step kept"
        check(not step or train.keep_checkpoints, "train.keep_checkpoints", train.keep_checkpoints, need)
        need = f"at most synthesize.num_images ({synthetic}), from which the weaker model learns"
        check(bool(step) or self.weak.batch_size <= synthetic, "weak.batch_size", self.weak.batch_size, need)

    def _check_adapters(self, synthetic: int) -> None:
        if not self.extract.needs_adapters:
            return
        need = f"without {ADAPTED.name}: a Python object has values, not the parameters that adapters change"
        check(self.target.format != OBJECT, "extract.attacks", self.extract.attacks, need)
        size, most = self.adapters.batch_size, int(self.adapters.keep * synthetic)
        need = f"at most {most}: the adapters learn from {self.adapters.keep:g} of {synthetic} synthetic images"
        check(size <= most, "adapters.batch_size", size, need)

    @property
    def _networks(self) -> list[str]:
        """The classes of the target's network, the last inside of wrappers such as those for latents."""
        found = json.loads(self.target.network or '{"class": "UNet"}')  # by default that of the section `model`
        classes = [str(found["class"])]
        while "net" in found:
            found = found["net"]
            classes.append(str(found["class"]))
        return classes

    @property
    def _has_label_table(self) -> bool:
        """Whether the embeddings of the target's labels, if it has any, are rows of a table."""
        return any(table.__name__ in self._networks for table in label_table.TABLES)

    def _check_measure(self) -> None:
        e, data = self.evaluate, self.data
        for metric in map(e.make_metric, METRICS.values()):
            if metric.references_setting:
                value = getattr(metric, metric.references_setting)
                members, heldout = data.counts
                most = value - metric.references_needed + min(members, heldout)
                sides = f"data.num_members ({members}) and data.num_heldout ({heldout})"
                key = f"evaluate.{metric.name}_{metric.references_setting}"
                check(value <= most, key, value, f"at most {most}, given {sides}")
        for metric in e.make_metrics():
            key = f"evaluate.{metric.name}_{metric.side_setting}"
            height, width, _ = data.shape
            need = f"a divisor of the images' height and width ({height} and {width})"
            check(height % metric.side_divisor == width % metric.side_divisor == 0, key, metric.side_divisor, need)
        steps = self.diffusion.num_timesteps
        need = f"below diffusion.num_timesteps ({steps})"
        check(e.membership_timestep < steps, "evaluate.membership_timestep", e.membership_timestep, need)
