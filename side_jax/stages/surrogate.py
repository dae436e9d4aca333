"""Stage 4: trains the classifiers that guide extraction.

`side`: SIDE's surrogate, time-dependent, on noised synthetic images with their pseudo-labels.
`conditional`: the baseline of Carlini et al. 2023 as the SIDE paper runs it, a standard time-independent classifier on
clean members with their true labels.
"""

from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np

from side_jax import builders, checkpoint, files, manifest, sampling, training
from side_jax.config import from_config
from side_jax.diffusion.process import diffuse
from side_jax.diffusion.schedule import Schedule
from side_jax.manifest import Unit, unit
from side_jax.models.classifier import Classifier
from side_jax.settings import Fit, Settings


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes surrogate/{side,conditional}/checkpoints, for the attacks that the config asks for."""
    settings = from_config(config)
    works = manifest.surrogate_units(settings, workdir)
    for attack, work in works.items():
        if not work.begin():
            continue
        if attack == "side":
            made = sampling.read_shards(workdir / "synthesize", settings.synthesize.num_images)
            labels = files.read_npz(workdir / "label" / "labels.npz")["label"]
            used = labels >= 0
            _fit(settings, work, made["images"][used], labels[used], int(labels.max()) + 1, settings.surrogate)
        else:
            members, _, _, _ = builders.load_split(settings, workdir)
            _fit(settings, work, members.images, members.labels, members.num_classes, settings.conditional)
    manifest.finish_stage(workdir, "surrogate", list(works.values()))


def load(settings: Settings, workdir: Path, attack: str) -> tuple[Classifier, dict]:
    """The trained classifier of an attack and its averaged parameters."""
    work = unit(settings, workdir, f"surrogate/{attack}")
    classifier = builders.build_classifier(settings, work.content()["classes"], time_dependent=attack == "side")
    return classifier, builders.restore_ema(settings, work, classifier).trees["ema"]


def _fit(settings: Settings, work: Unit, images: np.ndarray, labels: np.ndarray, classes: int, fit: Fit) -> None:
    time_dependent = work.name == "surrogate/side"
    classifier = builders.build_classifier(settings, classes, time_dependent=time_dependent)
    seed = builders.stream_seed(settings, work.name)
    labels = labels.astype(np.int32)
    training.run(
        loss_fn=cross_entropy(classifier, builders.build_schedule(settings) if time_dependent else None),
        init_fn=builders.init_fn(classifier, settings, seed),
        fetch=lambda chosen: (images[chosen], labels[chosen]),
        num_examples=len(labels),
        fit=fit,
        seed=seed,
        directory=work.directory,
        checkpoints=builders.checkpoint_directory(work.workdir, work.name),
        meta=checkpoint.settings_meta(settings, work.fingerprint),
        description=f"train the {work.name.rpartition('/')[2]} classifier",
    )
    work.finish(steps=fit.num_steps, classes=classes, images=len(images))


def cross_entropy(classifier: Classifier, schedule: Schedule | None) -> training.LossFn:
    """Cross-entropy on uint8 images noised at uniform t, or on clean images where there is no schedule."""

    def loss_fn(params, batch, keys, key):
        images, labels = sampling.to_float(batch[0]), batch[1]
        t = jnp.zeros(labels.shape, jnp.int32)
        if schedule is not None:
            images, t, _ = diffuse(schedule, images, keys)
        log_probs = classifier.apply({"params": params}, images, t)
        losses = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
        right = (log_probs.argmax(axis=1) == labels).astype(jnp.float32)
        count = jnp.ones_like(right).sum()
        return losses.mean(), {"loss": (losses.sum(), count), "accuracy": (right.sum(), count)}

    return loss_fn
