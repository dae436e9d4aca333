"""Stage surrogate: trains the networks that guide extraction, each on its own images and labels.

`side`: SIDE's surrogate, trained on synthetic images with pseudo-labels.
`side_random`: control; pseudo-labels permuted once, a partition that can only be memorised.
`side_shuffled`: control; pseudo-labels permuted in every batch, so that nothing can be learned.
`side_heldout`: control; held-out instead of synthetic images, clustered alike, as an attacker with similar data would.
`oracle`: members with their true labels. All of the above are time-dependent, trained on noised images.
`black_box`: the fitness of the black-box search, a time-independent classifier of clean synthetic images with
pseudo-labels.
`conditional`: the baseline of Carlini et al. 2023 as in the SIDE paper, a time-independent classifier trained on clean
members with their true labels.
`side_lora`: no classifier, but low-rank adapters and labels for the target itself (stages/fit_adapters.py).
`weak`: no classifier, but a DPM like the target that is trained on synthetic images, for the attack `extrapolate`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from side_jax import builders
from side_jax.attacks.table import ATTACKS, Classifier, known_classifiers
from side_jax.devices import process_group
from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.features import choose, clustering, extractors
from side_jax.progress import doing
from side_jax.sampling import shards
from side_jax.settings import Settings, held_back, random_streams
from side_jax.stages import fit_adapters, stage_inputs, stage_table, train_dpm
from side_jax.training import calibration, losses, trainer
from side_jax.training.validation import EarlyStop, Predictions, noise_levels
from side_jax.workdir import checkpoint, curves, files, work_units
from side_jax.workdir.curves import Curves
from side_jax.workdir.work_units import Unit


def run(settings: Settings, workdir: Path) -> None:
    """Writes surrogate/<classifier>/{checkpoints,levels.json,...} for the configured attacks.

    For attacks that need the weaker model or adapters, also surrogate/{weak,side_lora}/checkpoints.
    """
    works = stage_table.guide_units(settings, workdir)
    for name, work in stage_table.classifier_units(settings, workdir).items():
        if work.begin():
            classifier = known_classifiers()[name]
            examples = _examples(settings, workdir, classifier)
            images = stage_inputs.sampled(settings, workdir, examples.images)
            _fit(settings, work, classifier, dataclasses.replace(examples, images=images))
    if settings.extract.needs_adapters and (own := stage_table.adapters_unit(settings, workdir)).begin():
        own.finish(**fit_adapters.fit(settings, workdir, own))
    if settings.trains_weak and (weak := stage_table.weak_unit(settings, workdir)).begin():
        images = shards.read(stage_table.synthetic_shards(settings, workdir))["images"]
        options = {"unet": builders.build_weak_network(settings), "fit": settings.weak}
        options["description"] = "train the weaker model"
        weak.finish(**train_dpm.train(settings, weak, images, **options))
    work_units.finish_stage(workdir, "surrogate", works)


def check_true_labels(settings: Settings, num_classes: int) -> None:
    """Raises InputError if a classifier needs the members' true labels and there is only one label."""
    if settings.extract.needs_true_labels and num_classes < 2:
        guides = {name: ATTACKS[name].classifier for name in settings.extract.attacks}
        attacks = [name for name, guide in guides.items() if guide and guide.true_labels]
        raise InputError(
            f"config.extract.attacks holds {' and '.join(attacks)}, which needs the members' labels, but all images "
            "have the same one; remove it, or give each class a subfolder or a label."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Examples:
    """Training data: uint8 images [n, h, w, c], int32 labels [n], the number of classes, teacher log-probs [n, C].

    Of a target of latents, float32 latents take the place of the images.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    teacher: np.ndarray | None = None

    def __getitem__(self, chosen: np.ndarray) -> "_Examples":
        teacher = None if self.teacher is None else self.teacher[chosen]
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen], teacher=teacher)


def _examples(settings: Settings, workdir: Path, classifier: Classifier) -> _Examples:
    """The training data of a classifier."""
    if classifier.true_labels:
        members, _, _, _ = stage_inputs.load_split(settings, workdir)
        check_true_labels(settings, members.num_classes)
        return _Examples(images=members.images, labels=members.labels.astype(np.int32), classes=members.num_classes)
    if classifier.images == "heldout":
        images = stage_inputs.load_split(settings, workdir)[1].images
        compared = stage_inputs.clustered(settings, workdir, images)
        features = extractors.extract(stage_inputs.build_extractor(settings, workdir), compared, workdir / "features")
        labels = clustering.pseudo_labels(features, settings.label, random_streams.stream_seed(settings, "label"))[
            "label"
        ]
    else:
        images = shards.read(stage_table.synthetic_shards(settings, workdir))["images"]
        labels = files.read_npz(workdir / "label" / "labels.npz")["label"]
    s = settings.surrogate
    if s.objective == "tdkd" and s.teacher_path and classifier.distilled:
        teacher = choose.build_teacher(settings)(images)
        labels = teacher.argmax(axis=1).astype(np.int32)
        examples = _Examples(images=images, labels=labels, classes=teacher.shape[1], teacher=teacher)
    else:
        examples = _Examples(images=images, labels=labels, classes=int(labels.max()) + 1)[labels >= 0]
    if classifier.label_control == "random":
        order = np.random.default_rng(random_streams.stream_seed(settings, "random labels")).permutation(
            len(examples.labels)
        )
        examples = dataclasses.replace(examples[order], images=examples.images)
    return examples


def _fit(settings: Settings, work: Unit, kind: Classifier, examples: _Examples) -> None:
    fit = getattr(settings, kind.section)
    kept_back, train = _held_back(settings, kind, examples)
    schedule, seed = builders.build_schedule(settings), random_streams.stream_seed(settings, work.name)
    meta = checkpoint.settings_meta(settings, work.fingerprint)
    classifier = builders.build_classifier(settings, examples.classes, time_dependent=kind.noised)
    s = settings.surrogate
    options = _loss_options(settings, kind, schedule)
    content: dict[str, Any] = {}
    trained_by = fit
    if "temperature" in options and train.teacher is None:
        train = dataclasses.replace(train, teacher=_teach(settings, work, train, options["shuffle"]))
        trained_by = s.fit_with(s.num_steps - s.teacher_steps)
        content["teacher_steps"] = s.teacher_steps

    predictions = Predictions(
        classifier, schedule, kept_back.images, random_streams.stream_key(settings, "validation"), fit.batch_size
    )
    levels = noise_levels(schedule.num_timesteps)
    checkpoints = checkpoint.checkpoint_directory(work.workdir, work.name)
    if process_group.primary():
        _start_over_if_lost(work, checkpoints, fit.patience)
    process_group.barrier(f"{work.name} can go on")
    first_step = checkpoint.latest_step(checkpoints) or 0
    with Curves(work.directory / "validation.jsonl", first_step=first_step, write=process_group.primary()) as curve:
        watch = EarlyStop(
            predictions,
            kept_back.labels,
            levels if kind.noised else levels[:1],
            fit.patience,
            curve,
            work.directory / "best",
            meta,
        )
        params, steps = trainer.run(
            loss_fn=losses.classifier_loss(classifier, **options),
            init_fn=builders.init_fn(classifier, settings, seed),
            fetch=_fetch(train),
            num_examples=len(train.labels),
            fit=trained_by,
            seed=seed,
            directory=work.directory,
            checkpoints=checkpoints,
            meta=meta,
            description=f"train the {kind.name} classifier",
            watch=watch,
            watch_every=fit.validate_every,
        )
    if fit.patience:
        best = stage_inputs.restore_ema(settings, work, classifier, work.directory / "best")
        params, content["best_step"] = best.trees["ema"], best.step
    with doing(f"calibrating the {kind.name} classifier"):
        rows = calibration.level_metrics(predictions(params, levels), kept_back.labels, levels)
    if process_group.primary():
        files.write_json(work.directory / "levels.json", rows)
    work.finish(
        steps=steps, classes=examples.classes, images=len(train.labels), held_back=len(kept_back.labels), **content
    )


def _held_back(settings: Settings, kind: Classifier, examples: _Examples) -> tuple[_Examples, _Examples]:
    """(the tenth that validates, the rest that trains).

    Raises:
      InputError: if the rest does not fill a batch.
    """
    count, batch_size = len(examples.labels), getattr(settings, kind.section).batch_size
    order = np.random.default_rng(random_streams.stream_seed(settings, "held back")).permutation(count)
    kept_back, train = examples[order[: held_back(count)]], examples[order[held_back(count) :]]
    if len(train.labels) < batch_size:
        raise InputError(
            f"{kind.name} has {len(train.labels)} images to learn from once a tenth is held back, fewer than its batch "
            f"of {batch_size}; lower the batch_size, make more synthetic images, or lower label.cohesion_threshold."
        )
    return kept_back, train


def _loss_options(settings: Settings, kind: Classifier, schedule: Schedule) -> dict[str, Any]:
    """The options of losses.classifier_loss; with a temperature, it learns from a teacher (TDKD)."""
    s = settings.surrogate
    options: dict[str, Any] = {"shuffle": kind.label_control == "shuffled"}
    if kind.noised:
        options["schedule"] = schedule
        options["importance_sampling"] = s.timesteps == "importance"
    if s.objective == "tdkd" and kind.distilled:
        options["temperature"] = s.distillation_temperature
    return options


def _start_over_if_lost(work: Unit, checkpoints: Path, patience: int) -> None:
    """Deletes the checkpoints if a file is missing that only training from scratch can restore."""
    step = checkpoint.latest_step(checkpoints)
    if step is None:
        return
    metrics, validation = (work.directory / f"{name}.jsonl" for name in ("metrics", "validation"))
    complete = metrics.exists() and validation.exists()
    if patience and any(row["step"] <= step for row in curves.read(validation)):
        complete = complete and checkpoint.latest_step(work.directory / "best") is not None
    if not complete:
        validation.unlink(missing_ok=True)  # first, so that a kill here leaves the loss detectable
        epath.Path(checkpoints).rmtree()


def _teach(settings: Settings, work: Unit, train: _Examples, shuffle: bool) -> np.ndarray:
    """Trains TDKD's teacher, time-independent, on clean images; returns its log-probabilities of them, [n, C]."""
    module = builders.build_classifier(settings, train.classes, time_dependent=False)
    directory, seed = work.directory / "teacher", random_streams.stream_seed(settings, "teacher")
    fit = settings.surrogate.fit_with(settings.surrogate.teacher_steps)
    params, _ = trainer.run(
        loss_fn=losses.classifier_loss(module, shuffle=shuffle),
        init_fn=builders.init_fn(module, settings, seed),
        fetch=_fetch(train),
        num_examples=len(train.labels),
        fit=fit,
        seed=seed,
        directory=directory,
        checkpoints=directory / "checkpoints",
        meta=checkpoint.settings_meta(settings, work.fingerprint),
        description=f"train the teacher of the {work.name.rpartition('/')[2]} classifier",
    )
    predictions = Predictions(
        module, None, train.images, random_streams.stream_key(settings, "teacher"), fit.batch_size
    )
    return predictions(params, np.zeros(1, np.int32))[0]


def _fetch(examples: _Examples) -> Any:
    arrays = (examples.images, examples.labels)
    if examples.teacher is not None:
        arrays += (examples.teacher,)
    return lambda chosen: tuple(array[chosen] for array in arrays)
