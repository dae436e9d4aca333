"""Settings of the attacks and of the sampler."""

import dataclasses
from typing import Any

from side_jax.attacks.table import ATTACKS, NOISE, PLAIN, Run, known_classifiers
from side_jax.diffusion.guidance import FORMS
from side_jax.diffusion.schedule import SPACINGS
from side_jax.diffusion.solvers import SOLVERS, VARIANCES
from side_jax.models.adapters import KERNELS
from side_jax.settings.checks import check, check_different, check_scales, one_of
from side_jax.settings.target import Fit

LABEL = "label"  # what the black-box search changes from generation to generation: label embeddings, or starting noise
GENOMES = (NOISE, LABEL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """The sampler of synthetic images and of every attack."""

    solver: str = "ddim"  # "ddim" or "dpmpp_2m" (DPM-Solver++ of second order)
    num_steps: int = 20  # number of sampling steps
    eta: float = 0.0  # 0 is DDIM, 1 is DDPM
    variance: str = "small"  # of the noise, for eta > 0: "small" or "large", diffusers' fixed_small and fixed_large
    spacing: str = "trailing"  # time grid: "leading", "linspace" or "trailing", as in diffusers, or "log_snr"
    batch_size: int = 64  # images sampled together, over all local devices
    # "scan" compiles the whole trajectory, "dispatch" a single step; "auto" is "dispatch" for guided sampling on CPU,
    # "scan" otherwise.
    loop: str = "auto"

    def __post_init__(self) -> None:
        check(self.num_steps >= 1, "sampler.num_steps", self.num_steps, "at least 1")
        check(0 <= self.eta <= 1, "sampler.eta", self.eta, "between 0 (DDIM) and 1 (DDPM)")
        one_of("sampler.solver", self.solver, SOLVERS)
        ok = self.solver == "ddim" or self.eta == 0
        check(ok, "sampler.eta", self.eta, f"0 with sampler.solver = {self.solver}, which draws no noise")
        one_of("sampler.variance", self.variance, VARIANCES)
        one_of("sampler.spacing", self.spacing, SPACINGS)
        check(self.batch_size >= 1, "sampler.batch_size", self.batch_size, "at least 1")
        one_of("sampler.loop", self.loop, ("auto", "scan", "dispatch"))

    @property
    def solver_options(self) -> dict[str, Any]:
        """The settings here that the solver has as attributes."""
        shared = {field.name for field in dataclasses.fields(SOLVERS[self.solver])}.intersection(vars(self))
        return {name: getattr(self, name) for name in sorted(shared)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract:
    """The attacks. All draw the same number of images from the same starting noise."""

    num_images: int = 1024  # N_G, images of each attack at each guidance scale
    solver: str = ""  # solver of guided attacks; "": sampler.solver, which synthetic and unguided images always use
    num_steps: int = 0  # sampling steps of guided attacks; 0: sampler.num_steps
    # The attacks to run, the guided ones at every guidance scale.
    attacks: tuple[str, ...] = tuple(name for name, attack in ATTACKS.items() if attack.default)
    guidance_scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)  # lambda, for the guided attacks
    temperature_scaling: bool = False  # whether the probabilities that guide are calibrated on held-back images
    guidance_form: str = "score"  # "score", or "mean" or "mean_at_mean", which need sampler.eta > 0
    guidance_interval: tuple[int, ...] = ()  # (t_low, t_high), the timesteps at which guidance acts; (): at all
    normalize_gradient: bool = False  # scale each image's guidance gradient to a root mean square of 1

    def __post_init__(self) -> None:
        if self.solver:
            one_of("extract.solver", self.solver, SOLVERS)
        one_of("extract.guidance_form", self.guidance_form, FORMS)
        interval = self.guidance_interval
        need = "empty, or (t_low, t_high) with 0 <= t_low <= t_high"
        ok = not interval or (len(interval) == 2 and 0 <= interval[0] <= interval[1])
        check(ok, "extract.guidance_interval", interval, need)
        check(self.num_steps >= 0, "extract.num_steps", self.num_steps, "at least 0 (0: sampler.num_steps)")
        check(self.num_images >= 1, "extract.num_images", self.num_images, "at least 1 (N_G, images for each attack)")
        check(len(self.attacks) >= 1, "extract.attacks", self.attacks, f"one or more of {', '.join(ATTACKS)}")
        for attack in self.attacks:
            one_of("extract.attacks", attack, ATTACKS)
        check_scales("extract.guidance_scales", self.guidance_scales)

    @property
    def classifiers(self) -> list[str]:
        """The classifiers that guide the attacks."""
        guides = (attack.classifier for name, attack in ATTACKS.items() if name in self.attacks)
        return list(dict.fromkeys(guide.name for guide in guides if guide))

    @property
    def sources(self) -> set[str]:
        """The sources of the classifiers' images: members (with their own labels), heldout or synthetic."""
        return {known_classifiers()[name].images for name in self.classifiers}

    @property
    def searches(self) -> str:
        """The attack that is a search, if there is one; else ""."""
        return next((name for name in self.attacks if ATTACKS[name].searches), "")

    @property
    def needs_weak(self) -> bool:
        """Whether a weaker model guides an attack."""
        return any(ATTACKS[name].weak for name in self.attacks)

    @property
    def needs_adapters(self) -> bool:
        """Whether an attack draws from the target with adapters."""
        return any(ATTACKS[name].adapted for name in self.attacks)

    @property
    def needs_twin(self) -> bool:
        """Whether an attack draws from the twin model."""
        return any(ATTACKS[name].twin for name in self.attacks)

    @property
    def needs_pseudo_labels(self) -> bool:
        """Whether a classifier, or adapters, learn from synthetic images by their pseudo-labels."""
        return "synthetic" in self.sources or self.needs_adapters

    @property
    def clusters_images(self) -> bool:
        """Whether synthetic or held-out images are clustered by their features."""
        return self.needs_pseudo_labels or "heldout" in self.sources

    @property
    def needs_true_labels(self) -> bool:
        """Whether a classifier learns from the members' own labels."""
        return "members" in self.sources

    def runs(self, modes: "Modes", black_box_modes: "BlackBoxModes", adapters: "Adapters") -> list[Run]:
        """One run for every attack and guidance scale; unguided sampling is a single run.

        Mode seeking has one for every run that it starts from and for each of its recipes; these come last.
        """
        sampled: list[Run] = []
        for attack in ATTACKS.values():
            if attack.name in self.attacks and not attack.seeks_modes:
                own = adapters.scales if attack.adapted else self.guidance_scales
                scales = own if attack.guided else (0.0,)
                sampled.extend(Run(attack=attack.name, scale=scale) for scale in scales)
        starts = [(run.attack, run.scale) for run in sampled if run.attack in modes.starts]
        starts += [(NOISE, 0.0)] if NOISE in modes.starts else []
        return sampled + [
            Run(attack=name, scale=scale, start=start, **recipe)
            for name, attack in ATTACKS.items()
            if name in self.attacks and attack.seeks_modes
            for start, scale in ([(attack.starts_from, 0.0)] if attack.starts_from else starts)
            for recipe in (black_box_modes if attack.renoises else modes).recipes
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBox:
    """The genetic search (the attack `black_box`); extract.num_images are its queries."""

    # What is searched: "noise", the starting noise of images without a label; or "label", label embeddings (of prompts,
    # those of prompts), with fresh noise for each image. "": label where the target has at least two labels whose
    # embeddings are rows of a table, else noise.
    genome: str = ""
    searches: int = 10  # side by side, each for images of its own cluster, which share the queries
    population: int = 50  # queries of each generation of a search
    parents: int = 10  # of all images of a search so far, those with the highest fitness have children
    crossover: float = 0.5  # probability that a child has two parents, each number of its genome from either
    mutation: float = 0.6  # share m of what is new in a child, x' = sqrt(1 - m^2) x + m z

    def __post_init__(self) -> None:
        if self.genome:
            one_of("black_box.genome", self.genome, GENOMES)
        check(self.searches >= 1, "black_box.searches", self.searches, "at least 1")
        check(self.population >= 1, "black_box.population", self.population, "at least 1")
        need = f"between 1 and black_box.population ({self.population})"
        check(1 <= self.parents <= self.population, "black_box.parents", self.parents, need)
        check(0 <= self.crossover <= 1, "black_box.crossover", self.crossover, "between 0 and 1, a probability")
        need = "above 0, or children of one parent are its copies, and at most 1"
        check(0 < self.mutation <= 1, "black_box.mutation", self.mutation, need)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weak(Fit):
    """The weaker model that the attack `extrapolate` guides away from, and its training on the target's own samples."""

    # Step of the target's training whose checkpoint is the weaker model (see train.keep_checkpoints); 0: none, a model
    # like the target is trained on the synthetic images.
    step: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.step >= 0, "weak.step", self.step, "at least 0 (0: a model of the target's own samples)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters(Fit):
    """The low-rank adapters and the labels of the attack `side_lora`, fitted to the target's own samples."""

    rank: int = 16  # of each adapter, at most the smaller side of its kernel; 0: only the labels are trained
    alpha: float = 16.0  # the adapters' change of a kernel is multiplied with alpha / rank
    # Which kernels have adapters: "all", "convolution" or "dense", by their shape, or "attention": its queries, keys,
    # values and outputs.
    kernels: str = "all"
    dropout: float = 0.1  # share of the training images shown without their label; guidance needs that prediction too
    # Guidance scales w of its samples: 1 is the adapted model with a label, as in the paper; others are classifier-free
    # guidance, epsilon_null + w (epsilon_c - epsilon_null).
    scales: tuple[float, ...] = (1.0,)
    num_steps: int = 800  # number of training steps
    # Rounds of mode seeking that take the samples to modes before the fit; 0: samples as drawn, as in the paper, which
    # unlearns what was memorised (docs/results_adapters.md).
    rounds: int = 5
    noise: float = 0.4  # noise of those rounds, as in modes.noise_levels
    keep: float = 1.0  # share of these samples in the fit: those that a further round of mode seeking moves least

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "rounds"):
            check(getattr(self, name) >= 0, f"adapters.{name}", getattr(self, name), "at least 0")
        for name in ("alpha", "noise"):
            check(getattr(self, name) > 0, f"adapters.{name}", getattr(self, name), "above 0")
        one_of("adapters.kernels", self.kernels, KERNELS)
        check(0 <= self.dropout < 1, "adapters.dropout", self.dropout, "at least 0 and below 1")
        check(0 < self.keep <= 1, "adapters.keep", self.keep, "above 0 and at most 1")
        check_scales("adapters.scales", self.scales)
        need = "above 0 with a scale other than 1 in adapters.scales, which needs the prediction without a label too"
        check(self.dropout > 0 or set(self.scales) == {1.0}, "adapters.dropout", self.dropout, need)

    @property
    def all_rounds(self) -> int:
        """Rounds of mode seeking for each synthetic image, with the one that shows which are moved least."""
        return self.rounds + (self.keep < 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modes:
    """Mode seeking (the attack `modes`): where it starts, and its rounds."""

    # Where it starts: attacks of extract.attacks, from whose images it starts, at each scale; or "noise".
    starts: tuple[str, ...] = (PLAIN.name,)
    # Noise of the denoiser in the first round, over the spread of the training images about their mean image.
    noise_levels: tuple[float, ...] = (0.4,)
    rounds: tuple[int, ...] = (5,)  # numbers of rounds, with one call of the network each
    last_noise: float = 1.0  # noise of the last round over that of the first; below 1, it falls geometrically
    random: bool = False  # whether each round adds noise to the image first
    relaxation: float = 1.0  # factor of each round's change; above 1, fewer rounds do
    anderson: bool = False  # whether rounds are accelerated by Anderson's method

    def __post_init__(self) -> None:
        choices = (NOISE, *(name for name, attack in ATTACKS.items() if not (attack.seeks_modes or attack.twin)))
        for name in ("starts", "noise_levels", "rounds"):
            check_different(f"modes.{name}", getattr(self, name))
        for start in self.starts:
            one_of("modes.starts", start, choices)
        check(min(self.noise_levels) > 0, "modes.noise_levels", self.noise_levels, "above 0")
        check(min(self.rounds) >= 1, "modes.rounds", self.rounds, "at least 1")
        check(0 < self.last_noise <= 1, "modes.last_noise", self.last_noise, "above 0 and at most 1")
        check(0 < self.relaxation < 2, "modes.relaxation", self.relaxation, "above 0 and below 2")
        ok = self.relaxation == 1 or not self.anderson
        check(ok, "modes.relaxation", self.relaxation, "1 with modes.anderson, which chooses its own factor")

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """What the runs from one start differ in."""
        return [{"noise": noise, "rounds": rounds} for noise in self.noise_levels for rounds in self.rounds]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBoxModes:
    """Mode seeking through an API that samples from a noised image (the attack `black_box_modes`), from plain samples.

    An image takes one request for its start and one for each round; a round takes `last_steps` calls of the network.
    """

    # Steps of the sampler in a round, its last ones; the noise that is added is that of the first of them.
    last_steps: tuple[int, ...] = (2,)
    rounds: tuple[int, ...] = (5,)  # numbers of rounds

    def __post_init__(self) -> None:
        for name in ("last_steps", "rounds"):
            values = getattr(self, name)
            check_different(f"black_box_modes.{name}", values)
            check(min(values) >= 1, f"black_box_modes.{name}", values, "at least 1")

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """What the runs differ in."""
        return [{"last_steps": steps, "rounds": rounds} for steps in self.last_steps for rounds in self.rounds]
