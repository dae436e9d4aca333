"""Loads the outputs of earlier stages: networks, images, the split, extractors and classifiers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax import builders
from side_jax.attacks.table import Classifier
from side_jax.builders import build_network, build_target, build_weak_network, init_fn
from side_jax.data import datasets, readers, split
from side_jax.data.sides import Side
from side_jax.devices import placement
from side_jax.diffusion import mode_seeking, pixel_range
from side_jax.errors import InputError
from side_jax.features import denoiser
from side_jax.features.choose import modelless_extractors
from side_jax.features.extractors import Extractor
from side_jax.measure.target_scores import TargetScores
from side_jax.sampling.mode_generation import draw
from side_jax.settings import Data, Modes, Settings
from side_jax.settings.random_streams import stream_key, stream_seed
from side_jax.stages.stage_table import lasting, train_unit, twin_unit, unit, weak_unit
from side_jax.training import calibration
from side_jax.workdir import files
from side_jax.workdir.checkpoint import Checkpoints, Restored, checkpoint_directory
from side_jax.workdir.work_units import Unit, change

SPREAD_IMAGES = 1000  # members from which their spread is computed


def build_extractor(settings: Settings, workdir: Path) -> Extractor:
    """The feature extractor; may read the target's checkpoint and write <workdir>/features.

    Raises:
      InputError: if a file that label.features reads can't be used.
    """
    label, batch = settings.label, {"batch_size": settings.sampler.batch_size}

    def build_denoiser() -> Extractor:
        params, seed = load_target(settings, workdir).trees["ema"], stream_seed(settings, "label")
        return denoiser.extractor(build_target(settings), params, label, seed=seed, **batch)

    known = modelless_extractors(settings, settings.data.channels, workdir / "features")
    return (known | {"denoiser": build_denoiser})[label.features]()


def restore_ema(
    settings: Settings, work: Unit, module: Any, directory: Path | None = None, step: int | None = None
) -> Restored:
    """The averaged parameters trained by a unit of work, on this process's devices, and the checkpoint's meta.

    Args:
      settings: of the run.
      work: the unit, whose fingerprint the checkpoint must have.
      module: the network of the parameters.
      directory: of the checkpoints; None: the result of checkpoint_directory.
      step: of the checkpoint; None: the newest.
    """
    return restore_average(work, init_fn(module, settings, 0), directory, step)


def restore_average(
    work: Unit, make: Callable[[], Any], directory: Path | None = None, step: int | None = None
) -> Restored:
    """As restore_ema, for parameters like those that `make` returns."""
    abstract = placement.abstract(make, placement.local_mesh())
    with Checkpoints(directory or checkpoint_directory(work.workdir, work.name), read_only=True) as store:
        return store.restore(fingerprint=work.fingerprint, step=step, ema=abstract)


def load_split(
    settings: Settings, workdir: Path, *, stream: bool = False
) -> tuple[datasets.Dataset, datasets.Dataset, np.ndarray, np.ndarray]:
    """(members, held-out, member ids, held-out ids), as split by the train stage.

    Args:
      settings: of the run.
      workdir: of the run.
      stream: whether images may be streamed; otherwise all are read into memory.

    Raises:
      InputError: if the split file or an image was changed since the split, or an image is gone; names it.
    """
    path = _checked_split(settings, workdir)
    try:
        *parts, member_ids, heldout_ids = split.apply_split(
            datasets.load(settings.data, private=settings.report.private), path
        )
    except InputError:
        if not settings.report.private:
            _check_nothing_gone(settings.data, path)
        raise
    if not stream:
        parts = [dataclasses.replace(part, images=np.asarray(part.images)) for part in parts]
    return *parts, member_ids, heldout_ids


def _checked_split(settings: Settings, workdir: Path) -> Path:
    """The split file; raises InputError if it is not as the train stage wrote it."""
    work, name = train_unit(settings, workdir), "train/split.json"
    work.check()
    if work.begun():
        digest = split_digest(files.read_json(workdir / name))
        if work.content().get("split_sha256", digest) != digest:  # all that earlier versions recorded
            raise InputError(f"{change(workdir / name)}; {lasting(name)}.")
    return workdir / name


def withhold_names(settings: Settings, workdir: Path) -> None:
    """Leaves the names of images out of the split file of a run that becomes private.

    Raises:
      InputError: if the file was changed since the split.
    """
    work, path = train_unit(settings, workdir), workdir / "train" / "split.json"
    if not settings.report.private or not work.begun() or not path.exists():
        return
    work.changed()
    saved = files.read_json(path)
    rows = [row for side in ("members", "heldout") for row in saved[side]]
    if any(row["name"] for row in rows) or path.relative_to(workdir).as_posix() not in work.digests():
        work.forget(path)  # so that a kill between two steps leaves nothing that looks changed
        for row in rows:
            row["name"] = ""
        files.write_json(path, saved)
        work.record(path)


def split_digest(data_split: dict[str, Any]) -> str:
    """The digest of a split's images, independent of their location."""
    return files.digest([[row["sha256"] for row in data_split[side]] for side in ("members", "heldout")])


def _check_nothing_gone(data: Data, path: Path) -> None:
    """Raises InputError if an image of the split file is no longer in the data, where others may have its id now."""
    source = readers.READERS[data.name](data)
    present = {"", *(readers.concatenate(source, readers.heldout(data)) if data.heldout_from else source).names}
    rows = files.read_json(path)
    gone = [row["name"] for side in ("members", "heldout") for row in rows[side] if row["name"] not in present]
    if gone:
        more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
        raise InputError(f"the image {gone[0]}{more} of {path} is no longer in the data; restore what was removed.")


def load_sides(settings: Settings, workdir: Path) -> tuple[Side, Side]:
    """(members, held-out images), as split by the train stage, all in memory."""
    by_identity = settings.data.split_by == "identity"
    *parts, member_ids, heldout_ids = load_split(settings, workdir)
    rows = files.read_json(workdir / "train" / "split.json")  # load_split has verified its hashes
    members, heldout = (
        Side(
            images=part.images,
            ids=ids,
            names=part.names,
            digests=tuple(row["sha256"] for row in rows[name]),
            groups=part.labels if by_identity else None,
            # Held-out images have no such mark, nor have splits of earlier versions.
            shared=np.asarray([row.get("near_moved", False) for row in rows[name]]),
        )
        for name, part, ids in zip(("members", "heldout"), parts, (member_ids, heldout_ids), strict=True)
    )
    return members, heldout


def load_classifier(settings: Settings, workdir: Path, classifier: Classifier) -> tuple[Any, dict[str, Any]]:
    """A trained classifier: (module, {"classifier": averaged parameters, "temperature": float32 [T]})."""
    work = unit(settings, workdir, f"surrogate/{classifier.name}")
    work.check()
    module = builders.build_classifier(settings, work.content()["classes"], time_dependent=classifier.noised)
    directory = work.directory / "best" if getattr(settings, classifier.section).patience else None
    params = restore_ema(settings, work, module, directory).trees["ema"]
    temperature = np.ones(settings.diffusion.num_timesteps, np.float32)
    if settings.extract.temperature_scaling:
        rows = files.read_json(work.directory / "levels.json")
        levels, temperatures = (np.asarray([row[key] for row in rows]) for key in ("timestep", "temperature"))
        temperature = calibration.interpolate(levels, temperatures, len(temperature))
    return module, {"classifier": params, "temperature": temperature}


def load_target(settings: Settings, workdir: Path) -> Restored:
    """The target model's averaged parameters, and its checkpoint's meta."""
    return restore_ema(settings, train_unit(settings, workdir), build_network(settings))


def load_twin(settings: Settings, workdir: Path) -> Restored:
    """The twin model's averaged parameters, and its checkpoint's meta."""
    return restore_ema(settings, twin_unit(settings, workdir), build_network(settings))


def load_weak(settings: Settings, workdir: Path) -> Restored:
    """The weaker model's averaged parameters, and its checkpoint's meta."""
    module = build_weak_network(settings)
    if settings.weak.step:
        return restore_ema(settings, train_unit(settings, workdir), module, step=settings.weak.step)
    return restore_ema(settings, weak_unit(settings, workdir), module)


def training_spread(settings: Settings, workdir: Path) -> float:
    """The spread of the target's training images, by which mode seeking scales its noise; see mode_seeking.spread.

    It is in the checkpoint's meta, so that runs without the data know it. Earlier versions did not record it; then it
    is computed from the members.
    """
    work = train_unit(settings, workdir)
    with Checkpoints(checkpoint_directory(workdir, work.name), read_only=True) as store:
        recorded = store.restore(fingerprint=work.fingerprint).meta.get("spread")
    return recorded if recorded is not None else spread_of(load_split(settings, workdir, stream=True)[0])


def taken_to_modes(
    settings: Settings,
    workdir: Path,
    params: dict[str, Any],
    images: np.ndarray,
    rounds: int,
    noise: float,
    name: str,
) -> np.ndarray:
    """Images after rounds of mode seeking in the target, at one noise and without acceleration, uint8 [n, h, w, c].

    Args:
      settings: of the run.
      workdir: of the run.
      params: those of builders.build_denoise.
      images: uint8 [n, h, w, c].
      rounds: number of rounds; 0: the images themselves.
      noise: in units of the training images' spread.
      name: of the setting that holds the noise.
    """
    if not rounds:
        return images
    plain, spread = builders.with_modes(settings, Modes()), training_spread(settings, workdir)
    levels = builders.mode_noise_levels(plain, noise, rounds, spread, name)
    generator = builders.build_mode_generator(plain, levels, lambda index: images[index])
    return draw(generator, params, stream_key(settings, "synthesize"), len(images))


def clustered(settings: Settings, workdir: Path, images: np.ndarray) -> np.ndarray:
    """Images uint8 [n, h, w, c] as their features are clustered: after label.rounds rounds of mode seeking."""
    own = settings.label
    params = {"dpm": load_target(settings, workdir).trees["ema"]} if own.rounds else {}
    return taken_to_modes(settings, workdir, params, images, own.rounds, own.noise, "label.noise")


def spread_of(members: datasets.Dataset, encode: Callable[[np.ndarray], np.ndarray] = pixel_range.to_float) -> float:
    """The spread of what a model samples for a dataset, from its first images.

    Args:
      members: the dataset.
      encode: images uint8 [n, h, w, c] -> what the model samples for them, float32 [n, ...].
    """
    return mode_seeking.spread(encode(np.asarray(members.take(np.arange(min(len(members), SPREAD_IMAGES))).images[:])))


def sampled(settings: Settings, workdir: Path, images: np.ndarray) -> np.ndarray:
    """What the target samples for images uint8 [n, h, w, c]: these, or latents, float32 [n, ...]."""
    if not build_target(settings).latent:
        return images
    return load_target_scores(settings, workdir).encoded(images)


def load_target_scores(settings: Settings, workdir: Path) -> TargetScores:
    """The scorer of images with the target model."""
    return TargetScores(settings, load_target(settings, workdir))
