"""The table of stages: the inputs, units of work, outputs and costs of each stage.

The pipeline, the plan (--dry-run), the disk-space check and `suspects` read this table and name no stage themselves.

A unit's fingerprint hashes the settings sections that it depends on and the fingerprints of the units that it reads, so
that a changed setting invalidates exactly its dependents.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from side_jax import __version__, progress
from side_jax.attacks.table import ADAPTED, ATTACKS, NOISE, Attack, Classifier, Run, known_classifiers
from side_jax.errors import InputError
from side_jax.progress.chain import Amounts
from side_jax.sampling import shards
from side_jax.settings import Fit, Settings
from side_jax.stages import amounts, estimates
from side_jax.stages.estimates import Clock, Cost, Timing
from side_jax.workdir import files
from side_jax.workdir.work_units import FORMAT_VERSION, META, Unit

# Settings that change how a run is executed or monitored, or where its inputs lie, but not its results. The hashes in
# the split file identify the data.
_IGNORED_SETTINGS = [
    *[
        (fit, key)
        for fit in ("train", "surrogate", "conditional", "weak", "adapters")
        for key in ("log_every", "checkpoint_every", "accumulate")
    ],
    ("label", "weights"),  # identified by weights_sha256
    ("surrogate", "teacher_path"),
    *[("data", key) for key in ("path", "revision", "heldout_revision", "data_dir")],
    *[("data", key) for key in ("storage", "memory_limit_mb", "max_corrupt")],
    *[("data", key) for key in ("fit", "orientation", "bit_range")],  # other pixels have other hashes
    ("model", "remat"),
    ("adapters", "scales"),  # each is in a run
    ("train", "keep_checkpoints"),
    *[("target", key) for key in ("path", "revision", "prompts")],
    ("condition", "path"),  # identified by sha256
]
EVALUATION_VERSION = 2  # of results.json; results of another version are computed anew
# The settings of `modes` that every run of mode seeking depends on; the others are in the run.
_ROUNDS = ("last_noise", "random", "relaxation", "anderson")
# The settings of `evaluate` that say how a conditional model's labels are scanned.
_LABEL_SCAN = ("label_images", "max_labels")
_SEEKING = ("rounds", "noise")  # of `label`: how images are taken to modes before they are clustered
# The settings of `extract` that affect guided runs only.
_GUIDANCE = ("temperature_scaling", "guidance_form", "guidance_interval", "normalize_gradient")
_ADAPTERS = f"surrogate/{ADAPTED.name}"  # the unit of the target's adapters
# The sections that determine the target model; a workdir holds a single one.
TARGET_SECTIONS = ("seed", "data", "target", "diffusion", "model", "condition", "train", "monitor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A planned unit of work.

    Attributes:
      unit: the unit.
      cost: estimates its remaining cost from timed steps; None if negligible.
      amounts: of what is left of it; None: nobody knows.
      disk: an upper bound of the bytes that it has yet to write, without small files.
      run: the attack and scale of an extraction unit.
    """

    unit: Unit
    cost: Callable[[Clock], Cost] | None = None
    amounts: Callable[[], Amounts] | None = None
    disk: Callable[[], int] = lambda: 0
    run: Run | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
      name: of the stage, as in --stages.
      reads: the stages whose outputs it reads.
      depends: maps each kind of unit to the settings sections that it depends on and the kinds of unit that it reads.
      plan: (settings, workdir) -> its units of work, in order; empty if the settings need none.
      outputs: maps a unit's manifest to the paths, relative to the workdir, that the finished unit must hold.
      audit: whether an audit includes it.
      timed: whether its settings may be chosen anew, by what earlier stages took, when it begins.
      run: (settings, workdir) -> None, does the remaining work; None: `side_jax.stages.<name>.run`.
      missing: (settings, workdir) -> the stages with a missing output that this one reads; None: the direct or indirect
        `reads` with a unit that is not done.
    """

    name: str
    reads: tuple[str, ...] = ()
    depends: Callable[[], Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = dict
    plan: Callable[[Settings, Path], list[Work]] = lambda settings, workdir: []
    outputs: Callable[[dict[str, Any]], Sequence[str]] = lambda manifest: ()
    audit: bool = True
    timed: bool = False
    run: Callable[[Settings, Path], None] | None = None
    missing: Callable[[Settings, Path], list[str]] | None = None


def unit_stage(unit: str) -> Stage:
    """The stage of a unit, such as `surrogate/side`."""
    return STAGES[unit.partition("/")[0]]


def fingerprint(settings: Settings, unit: str, **extra: Any) -> str:
    """The hash of everything that a kind of unit depends on; `extra` adds dependencies beyond whole sections."""
    sections, parents = unit_stage(unit).depends()[unit]
    values = dataclasses.asdict(settings)
    chosen = {name: values[name] for name in sections}
    for section, key in _IGNORED_SETTINGS:
        chosen.get(section, {}).pop(key, None)
    if not settings.monitor.stop_at_modes_rate:  # the curve of the modes affects nothing
        for key in ("seeks_modes", "stop_at_modes_rate"):
            chosen.get("monitor", {}).pop(key, None)
    if not settings.target.prompts:  # so that workdirs from before there were prompts go on
        chosen.get("target", {}).pop("prompts_sha256", None)
    if not settings.label.rounds:  # without rounds, their noise affects nothing
        for key in _SEEKING:
            chosen.get("label", {}).pop(key, None)
    for section in _unused(settings) & chosen.keys():
        del chosen[section]
    hashes = [_plain_fingerprint(settings, parent) for parent in parents]
    return files.digest({"unit": unit, "format": FORMAT_VERSION, "own": chosen, "parents": hashes, "more": extra})


_plain_fingerprint = functools.lru_cache(fingerprint)  # every unit asks for its parents' and theirs


def _unused(settings: Settings) -> set[str]:
    """The sections that do not affect the target model with these settings."""
    unused = {
        "train": bool(settings.target.path),  # an imported model is not trained
        "condition": not settings.condition.labels,  # without labels there is no label dropout
        "monitor": not settings.monitor.stops,  # the monitor affects training only by stopping it
    }
    return {section for section, is_unused in unused.items() if is_unused}


def unit(settings: Settings, workdir: Path, name: str, directory: str | None = None, **extra: Any) -> Unit:
    """The unit of kind `name`, which owns <workdir>/<directory or name>; `extra` is as in fingerprint."""
    value = fingerprint(settings, name, **extra)
    outputs = unit_stage(name).outputs
    return Unit(workdir=workdir, name=directory or name, fingerprint=value, outputs=outputs, lasting=lasting)


def train_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that trains or imports the target model."""
    return unit(settings, workdir, "train")


def twin_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that trains the twin: a model like the target, trained on held-out images."""
    return unit(settings, workdir, "train/twin")


def weak_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that trains the weaker model on synthetic images."""
    return unit(settings, workdir, "surrogate/weak")


def adapters_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that trains the target's adapters on synthetic images."""
    return unit(settings, workdir, _ADAPTERS)


def guide_units(settings: Settings, workdir: Path) -> list[Unit]:
    """The units that train what guides the configured attacks."""
    others = [adapters_unit(settings, workdir)] if settings.extract.needs_adapters else []
    others += [weak_unit(settings, workdir)] if settings.trains_weak else []
    return [*classifier_units(settings, workdir).values(), *others]


def classifier_units(settings: Settings, workdir: Path) -> dict[str, Unit]:
    """The units that train the configured attacks' classifiers, by classifier name."""
    return {name: unit(settings, workdir, f"surrogate/{name}") for name in settings.extract.classifiers}


def extraction_units(settings: Settings, workdir: Path) -> list[tuple[Run, Unit]]:
    """Every run of every attack, with its unit; a run that another one starts from comes before it."""
    units: dict[Run, Unit] = {}
    for run in settings.runs():
        extra = {"guidance_scale": run.scale, "num_images": settings.extract.num_images}
        extra |= _seeking_settings(settings, run, units) if run.start else _sampling_settings(settings, run, workdir)
        units[run] = unit(settings, workdir, f"extract/{run.attack}", f"extract/{run.name}", **extra)
    return list(units.items())


def _seeking_settings(settings: Settings, run: Run, units: Mapping[Run, Unit]) -> dict[str, Any]:
    """What a run of mode seeking depends on, the run that it starts from among the rest."""
    start = units[run.start_run].fingerprint if run.start_run else run.start
    own: dict[str, Any] = {"rounds": run.rounds, "start": start}
    if run.last_steps:
        return own | {"last_steps": run.last_steps}
    return own | {"relative_noise": run.noise} | {key: getattr(settings.modes, key) for key in _ROUNDS}


def _sampling_settings(settings: Settings, run: Run, workdir: Path) -> dict[str, Any]:
    """What a run that samples depends on."""
    sampler = settings.guided_sampler if run.guided else settings.sampler
    values = {key: getattr(sampler, key) for key in ("solver", "num_steps")}
    if ATTACKS[run.attack].searches:
        values["search"] = dataclasses.asdict(settings.black_box) | {"genome": settings.search_genome}
        if settings.search_genome == NOISE:  # so that workdirs from before there were others go on
            del values["search"]["genome"]
    if run.steered:
        values |= {key: getattr(settings.extract, key) for key in _GUIDANCE}
        if not ATTACKS[run.attack].classifier:
            del values["temperature_scaling"]  # affects classifiers only
        if ATTACKS[run.attack].weak:
            values["weak"] = settings.weak.step or weak_unit(settings, workdir).fingerprint
    return values


def data_free_units(settings: Settings, workdir: Path) -> list[tuple[Run, Unit]]:
    """The extraction units that need neither training nor held-out images."""
    return [(run, work) for run, work in extraction_units(settings, workdir) if ATTACKS[run.attack].data_free]


def evaluation_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that scores every extraction run."""
    parents = [work.fingerprint for _, work in extraction_units(settings, workdir)]
    own = dataclasses.asdict(settings.evaluate)
    if not settings.evaluate.label_images:  # earlier versions had no scan of labels
        own = {name: value for name, value in own.items() if name not in _LABEL_SCAN}
    depends = {"evaluate": own, "parents": parents, "format": EVALUATION_VERSION}
    if settings.report.private:
        depends["private"] = True  # its tables name no file
    if settings.uses_features:
        label = dataclasses.asdict(settings.label)
        left_out = {name for section, name in _IGNORED_SETTINGS if section == "label"}.union(_SEEKING)
        depends["features"] = {name: value for name, value in label.items() if name not in left_out}
    return _unit_with(workdir, "evaluate", depends)


def report_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that writes the report."""
    parent = evaluation_unit(settings, workdir).fingerprint
    shown = dataclasses.asdict(settings.report)
    return _unit_with(
        workdir, "report", {"name": settings.name, "report": shown, "parent": parent, "version": __version__}
    )


def suspects_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that ranks generated images without the training data."""
    units = data_free_units(settings, workdir)
    parents = [work.fingerprint for _, work in units]
    options = {"rmse_below": settings.evaluate.rmse_below, "timestep": settings.evaluate.membership_timestep}
    options |= {"relative_noise": settings.modes.noise_levels[0]} if any(run.rounds for run, _ in units) else {}
    if settings.evaluate.label_images:
        options |= {name: getattr(settings.evaluate, name) for name in _LABEL_SCAN}
        options["private"] = settings.report.private  # its picture is blurred
    return _unit_with(workdir, "suspects", {"own": options, "parents": parents, "format": FORMAT_VERSION})


def _unit_with(workdir: Path, stage: str, depends: dict[str, Any]) -> Unit:
    outputs = STAGES[stage].outputs
    return Unit(workdir=workdir, name=stage, fingerprint=files.digest(depends), outputs=outputs, lasting=lasting)


def synthetic_shards(settings: Settings, workdir: Path) -> list[shards.Shard]:
    """The shards of the synthetic images, with the SHA-256 that a finished unit recorded."""
    work = unit(settings, workdir, "synthesize")
    return _shards(work, settings.synthesize.num_images, settings)


def extracted_shards(settings: Settings, work: Unit) -> list[shards.Shard]:
    """The shards of an extraction unit, with the SHA-256 that a finished unit recorded."""
    return _shards(work, settings.extract.num_images, settings)


def _shards(work: Unit, num_images: int, settings: Settings) -> list[shards.Shard]:
    known = {name.rpartition("/")[2]: digest for name, digest in work.digests().items()}
    return shards.layout(work.directory, num_images, settings.sampler.batch_size, known)


def missing(settings: Settings, workdir: Path, stage: Stage) -> list[str]:
    """The stages, in order, that must still run before this one.

    Raises:
      InputError: if this stage has nothing to read with these settings.
    """
    if stage.missing:
        return stage.missing(settings, workdir)
    ancestors = _ancestors(stage)
    planned = ((name, one.plan(settings, workdir)) for name, one in STAGES.items() if name in ancestors)
    return [name for name, works in planned if not all(work.unit.done() for work in works)]


def _ancestors(stage: Stage) -> set[str]:
    """The stages that a stage reads, directly or indirectly."""
    return set(stage.reads).union(*(_ancestors(STAGES[name]) for name in stage.reads))


def _classifier_depends(classifier: Classifier) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A classifier's dependencies, by the source of its images; its own unit clusters held-out images."""
    sections = ("classifier", classifier.section)
    return {
        "synthetic": (sections, ("label",)),
        "heldout": (("label", *sections), ("train",)),
        "members": (sections, ("train",)),
    }[classifier.images]


def _surrogate_depends() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    found = {f"surrogate/{name}": _classifier_depends(one) for name, one in known_classifiers().items()}
    return found | {"surrogate/weak": (("weak",), ("synthesize",)), _ADAPTERS: (("adapters",), ("label",))}


def _extract_depends() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {f"extract/{name}": (("sampler",), (_model(attack),)) for name, attack in ATTACKS.items()}


def _model(attack: Attack) -> str:
    """The unit that trains what an attack draws from or is guided by."""
    if attack.classifier:
        return f"surrogate/{attack.classifier.name}"
    if attack.adapted:
        return f"surrogate/{attack.name}"
    return "train/twin" if attack.twin else "train"


def _plan_train(settings: Settings, workdir: Path) -> list[Work]:
    size = functools.partial(estimates.target_bytes, settings)
    works = [_training(train_unit(settings, workdir), settings.train, _train_step, size)]
    if settings.target.path:
        cost = functools.partial(estimates.imported, works[0].unit)
        works = [dataclasses.replace(works[0], cost=cost, amounts=amounts.imported)]
    if settings.extract.needs_twin:
        works.append(_training(twin_unit(settings, workdir), settings.train, _train_step, size))
    return works


def _plan_synthesize(settings: Settings, workdir: Path) -> list[Work]:
    if not settings.needs_synthetic:
        return []
    work, parts = unit(settings, workdir, "synthesize"), synthetic_shards(settings, workdir)
    return [_sampling(settings, work, parts, None)]


def _plan_label(settings: Settings, workdir: Path) -> list[Work]:
    if not settings.extract.needs_pseudo_labels:
        return []
    work = unit(settings, workdir, "label")
    disk = functools.partial(estimates.feature_bytes, settings, work)
    left, cost = (functools.partial(of, settings) for of in (amounts.labelling, estimates.labelling))
    return [Work(unit=work, cost=functools.partial(cost, work), amounts=left, disk=disk)]


def _plan_surrogate(settings: Settings, workdir: Path) -> list[Work]:
    works = []
    for name, work in classifier_units(settings, workdir).items():
        classifier = known_classifiers()[name]
        step = functools.partial(lambda one, clock: clock.classifier_step(one), classifier)
        size = functools.partial(estimates.classifier_bytes, settings, classifier=classifier)
        works.append(_training(work, getattr(settings, classifier.section), step, size, amounts.CLASSIFIER))
    if settings.extract.needs_adapters:
        own = adapters_unit(settings, workdir)
        left, cost, disk = (
            functools.partial(of, settings, own)
            for of in (amounts.adapting, estimates.adapting, estimates.adapter_bytes)
        )
        works.append(Work(unit=own, cost=cost, amounts=left, disk=disk))
    if settings.trains_weak:
        size = functools.partial(estimates.target_bytes, settings)
        works.append(_training(weak_unit(settings, workdir), settings.weak, _train_step, size))
    return works


def _plan_extract(settings: Settings, workdir: Path) -> list[Work]:
    units = extraction_units(settings, workdir)
    return [_sampling(settings, work, extracted_shards(settings, work), run) for run, work in units]


def _plan_evaluate(settings: Settings, workdir: Path) -> list[Work]:
    work = evaluation_unit(settings, workdir)
    cost = functools.partial(estimates.evaluation, settings, work)
    return [Work(unit=work, cost=cost, amounts=functools.partial(amounts.evaluation, settings))]


def _plan_report(settings: Settings, workdir: Path) -> list[Work]:
    work = report_unit(settings, workdir)
    left, cost = (functools.partial(of, settings, work) for of in (amounts.reporting, estimates.reporting))
    return [Work(unit=work, cost=lambda clock: cost(), amounts=left)]


def _train_step(clock: Clock) -> Timing:
    return clock.train_step()


def _training(
    work: Unit, fit: Fit, step: Callable[[Clock], Timing], size: Callable[..., int], kind: str = amounts.NETWORK
) -> Work:
    """The work of a training: its step, the bytes of its unit, and the kind of network."""
    left = functools.partial(amounts.training, work, fit, kind)
    cost = functools.partial(estimates.training, work, fit, step)
    return Work(unit=work, cost=cost, amounts=left, disk=functools.partial(size, work))


def _sampling(settings: Settings, work: Unit, parts: list[shards.Shard], run: Run | None) -> Work:
    left, cost, disk = (
        functools.partial(of, settings, work, parts)
        for of in (amounts.sampling, estimates.sampling, estimates.image_bytes)
    )
    return Work(unit=work, cost=functools.partial(cost, run), amounts=functools.partial(left, run), disk=disk, run=run)


def left(settings: Settings, workdir: Path, chosen: Sequence[str]) -> progress.Work:
    """What the chosen stages have left to do; without stages of which nobody knows."""
    units: dict[str, dict[str, Amounts]] = {}
    for name in chosen:
        works = [work for work in STAGES[name].plan(settings, workdir) if not work.unit.done()]
        known = {work.unit.name: work.amounts() for work in works if work.amounts}
        if known or not works:
            units[name] = known
    return progress.Work(units=units)


def _missing_for_suspects(settings: Settings, workdir: Path) -> list[str]:
    """Suspects need no data, no split file and no classifier that only the owner can train."""
    runs = [work for _, work in data_free_units(settings, workdir)]
    if not runs:
        raise InputError(
            f"config.extract.attacks holds only {' and '.join(settings.extract.attacks)}, but suspects are ranked only "
            "in runs that need no training data; add unconditional or side."
        )
    surrogate = attacker_classifier(settings)
    guides = [classifier_units(settings, workdir)[surrogate.name]] if surrogate else []
    done = {
        "train": train_unit(settings, workdir).done(without=("train/split.json",)),
        "surrogate": all(work.done() for work in guides),
        "extract": all(work.done() for work in runs),
    }
    return [stage for stage, is_done in done.items() if not is_done]


def attacker_classifier(settings: Settings) -> Classifier | None:
    """The configured classifier that an attacker can train without the data (SIDE's surrogate), or None."""
    candidates = (known_classifiers()[name] for name in settings.extract.classifiers)
    return next((one for one in candidates if one.noised and not one.owner_only and not one.label_control), None)


def _surrogate_outputs(manifest: dict[str, Any]) -> list[str]:
    if manifest.get("unit") in ("surrogate/weak", _ADAPTERS):
        return [f"{manifest['unit']}/checkpoints/{manifest.get('steps')}"]
    best = [f"best/{manifest['best_step']}"] if manifest.get("best_step") else []
    names = (f"checkpoints/{manifest.get('steps')}", "levels.json", "metrics.jsonl", "validation.jsonl", *best)
    return [f"{manifest['unit']}/{name}" for name in names]


def _suspects_outputs(manifest: dict[str, Any]) -> list[str]:
    modes = ["suspects/modes.csv", "suspects/modes.png"] if manifest.get("has_modes") else []
    return ["suspects/suspects.csv", "suspects/suspects.png", *modes, *_label_outputs(manifest, "suspects")]


def _label_outputs(manifest: dict[str, Any], folder: str) -> list[str]:
    return [f"{folder}/labels.csv", f"{folder}/labels.png"] if manifest.get("has_labels") else []


def _evaluate_outputs(manifest: dict[str, Any]) -> list[str]:
    names = ("results.json", "matches.csv", "members.csv")
    return [*(f"evaluate/{name}" for name in names), *_label_outputs(manifest, "evaluate")]


def lasting(name: str) -> str:
    """What the user can do if a file was changed that no stage makes anew; "" for all other files."""
    if name == "train/split.json":
        return "restore it, or delete it: then the same command makes it again from the same data"
    if name.endswith(META):
        folder = name.removesuffix(f"/{META}")
        return f"restore it, or delete the folder {folder} to continue from an earlier step, or to start over"
    if name == "train/divergence.json":
        return "restore it, or delete it: then it is computed again"
    if name.startswith("train/"):
        return "restore it, or delete it: then the report has no figure of it"
    return ""


def _train_outputs(manifest: dict[str, Any]) -> list[str]:
    if manifest.get("unit") == "train/twin":
        return [f"train/twin/checkpoints/{manifest.get('steps')}"]
    return ["train/split.json", f"checkpoints/{manifest.get('steps')}"]


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="train",
            depends=lambda: dict.fromkeys(("train", "train/twin"), (TARGET_SECTIONS, ())),
            plan=_plan_train,
            # Without the curves: nothing is computed from them, and restoring them would need training from scratch.
            outputs=_train_outputs,
        ),
        Stage(
            name="synthesize",
            reads=("train",),
            depends=lambda: {"synthesize": (("sampler", "synthesize"), ("train",))},
            plan=_plan_synthesize,
            outputs=lambda manifest: ("synthesize/samples.png",),
        ),
        Stage(
            name="label",
            reads=("train", "synthesize"),
            depends=lambda: {"label": (("label",), ("synthesize",))},
            plan=_plan_label,
            outputs=lambda manifest: ("label/labels.npz", "label/clusters.png"),
        ),
        Stage(
            name="surrogate",
            reads=("train", "synthesize", "label"),
            depends=_surrogate_depends,
            plan=_plan_surrogate,
            outputs=_surrogate_outputs,
        ),
        Stage(name="extract", reads=("train", "surrogate"), depends=_extract_depends, plan=_plan_extract, timed=True),
        Stage(
            name="evaluate",
            reads=("extract",),
            plan=_plan_evaluate,
            outputs=_evaluate_outputs,
        ),
        Stage(
            name="report",
            reads=("evaluate",),
            plan=_plan_report,
            outputs=lambda manifest: [f"report/{name}" for name in ("index.html", *manifest.get("figures", []))],
        ),
        Stage(
            name="suspects",
            reads=("train", "surrogate", "extract"),
            plan=lambda settings, workdir: [Work(unit=suspects_unit(settings, workdir))],
            outputs=_suspects_outputs,
            audit=False,
            missing=_missing_for_suspects,
        ),
    )
}


def audit_stages() -> tuple[str, ...]:
    """The stages of an audit, in order."""
    return tuple(name for name, stage in STAGES.items() if stage.audit)
