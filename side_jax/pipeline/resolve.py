"""Resolves a config to settings: fills in an imported model's options, numbers of images, hashes and commits."""

import dataclasses
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import ml_collections

from side_jax.config import from_config
from side_jax.data import config_files, datasets, split
from side_jax.errors import InputError
from side_jax.features import onnx, sscd
from side_jax.hub import repository
from side_jax.models.unet import UNet
from side_jax.settings import Data, Model, Settings
from side_jax.settings.checks import check
from side_jax.settings.paths import path_fields
from side_jax.settings.target import OWN
from side_jax.settings.target import Target as TargetSettings
from side_jax.targets import clip_tokens, formats, networks
from side_jax.targets.target_model import Origin, Target
from side_jax.workdir import files

logger = logging.getLogger(__name__)

_LOCAL_OPTIONS = ("dtype", "remat")  # how the network is computed: the config decides; the rest: the checkpoint


def resolve(config: ml_collections.ConfigDict, workdir: Path) -> Settings:
    """The settings of a config, completed from the files that it names.

    Args:
      config: of the run.
      workdir: of the run, where converted weights may lie; nothing is written.

    Raises:
      InputError: if the config is invalid, or a file is missing, not the one used before, or can't be used.
    """
    config = resolve_target(resolve_revisions(config, workdir))
    return resolve_counts(resolve_features(resolve_condition(from_config(config)), workdir))


def resolve_revisions(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """Fills in the commits of what lies in repositories of the hub; those that the workdir records for the same paths.

    So a run keeps its files when a branch moves on, also where its command is given again.

    Raises:
      InputError: if there is no such repository or revision, or nobody can say its commit.
    """
    saved = workdir / "config.json"
    before = files.read_json(saved) if saved.exists() else {}
    found = {}
    for setting in path_fields(Settings):
        given = config.get(setting.section)
        path = given.get(setting.name) if isinstance(given, ml_collections.ConfigDict) else ""
        if not setting.revision or not repository.is_id(path) or given.get(setting.revision):
            continue
        recorded = before.get(setting.section, {})
        commit = recorded.get(setting.revision) if recorded.get(setting.name) == path else ""
        try:
            found[setting.section, setting.revision] = commit or repository.commit_of(path)
        except InputError as error:
            raise InputError(f"config.{setting.section}.{setting.name}: {error}") from None
    if not found:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for (section, name), commit in found.items():
            config[section][name] = commit
    return config.lock()


def resolve_target(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills in the sections model and diffusion and the hash from config.target.path; without it, returns the config.

    A config with a recorded hash is complete, so the folder may then be missing, or a repository not in the cache.

    Raises:
      InputError: if the folder can't be used, its weights do not match target.sha256, or config.data does not match
        the shape of the model's images.
    """
    given = config.get("target")
    if given is None or not given.path:
        prompts = given.get("prompts") if given is not None else ""
        check(
            not prompts, "target.prompts", prompts, "empty while target.path is: models that are trained here have none"
        )
        return config
    prompts, gone = _prompts_digest(given)
    if gone:
        return config
    try:
        hints = formats.hints(config)
        path = _located(hints.target)
        if path is None:
            return config
        where = given.path if repository.is_id(given.path) else path
        target = formats.read_target(path, hints)
        _check_images(config.data, where, target)
        digest = weights_digest(target.origin)
        if not given.sha256:  # nobody has read these weights yet, so they may be of another model
            target.origin.read_params()
    except InputError as error:
        raise InputError(f"config.target.path: {error}") from None
    if given.sha256 not in ("", digest):
        raise InputError(
            f"config.target.sha256 is {given.sha256[:12]}..., but the weights in {where} have {digest[:12]}...: they "
            "are not the ones audited before; use a new --workdir for them."
        )
    if not given.sha256:
        for note in target.origin.notes:
            logger.warning("%s: %s.", where, note)
    return with_target(config, target, digest, prompts=prompts)


def with_target(
    config: ml_collections.ConfigDict, target: Target, digest: str, *, prompts: str = ""
) -> ml_collections.ConfigDict:
    """The config of a run that audits a model from elsewhere; the digests are those of its weights and prompts."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.target.sha256, config.target.format = digest, target.origin.format
        config.target.prompts_sha256 = prompts
        config.target.network = "" if isinstance(target.network, UNet) else networks.describe(target.network)
        if isinstance(target.network, UNet):
            computed = {name: getattr(config.model, name) for name in _LOCAL_OPTIONS}
            config.model = computed | _model_options(target.network)
        config.diffusion = dataclasses.asdict(target.diffusion)
        if target.num_labels:
            config.condition.labels, config.condition.num_labels = OWN, target.num_labels
            config.condition.null_label = target.null_label
    return config.lock()


def with_object(config: ml_collections.ConfigDict, target: Target) -> ml_collections.ConfigDict:
    """The config of a run that audits a Python object; what needs its derivatives is left out."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.target.path = f"{target.origin.format}:{target.origin.name}"
        (config.data.image_size, config.data.image_width), config.data.channels = target.size, target.channels
        config.evaluate.divergence = False  # needs derivatives
    logger.info("The memorisation divergence is not computed: a Python object has values and no derivatives.")
    return with_target(config, target, target.origin.digest)


def _prompts_digest(given: ml_collections.ConfigDict) -> tuple[str, bool]:
    """(SHA-256 of the prompts, whether their file is gone, which a recorded hash allows).

    Raises:
      InputError: if they can't be used, or are not the ones used before.
    """
    prompts = given.get("prompts")
    if not prompts or not isinstance(prompts, str):  # the settings complain of other types
        return "", False
    path = Path(os.path.expanduser(prompts))
    digest = config_files.digest(str(path), given.prompts_sha256, "target.prompts")
    if not path.is_file():
        return digest, True
    clip_tokens.read_prompts(path)  # complains
    return digest, False


def _located(target: TargetSettings) -> Path | None:
    """Where the checkpoint lies; None if its files are gone, which a recorded hash allows."""
    try:
        path = formats.located(target, cached=bool(target.sha256))
    except InputError:
        if not target.sha256:
            raise
        return None
    return None if target.sha256 and not path.exists() else path


def _check_images(data: ml_collections.ConfigDict, folder: str | Path, target: Target) -> None:
    """Raises InputError if config.data does not have the model's images."""
    own = from_config(data, Data).shape
    height, width, channels = shape = *(target.size or own[:2]), target.channels
    if shape != own:
        across = f", config.data.image_width = {width}" if height != width or data.image_width else ""
        raise InputError(
            f"the model in {folder} generates images of {height}x{width} pixels and {channels} channels; set "
            f"config.data.image_size = {height}{across} and config.data.channels = {channels} (now {own[0]}x{own[1]} "
            f"and {own[2]})."
        )
    if not isinstance(target.network, UNet):  # whose sizes the settings check
        target.check_size(own[:2])
    if target.size is None:
        logger.warning(
            "%s does not say the size of its images; that of config.data, %dx%d, is taken.", folder, *own[:2]
        )


def weights_digest(origin: Origin) -> str:
    """SHA-256 of the SHA-256 digests of the weight files, in the order of their names."""
    total = hashlib.sha256()
    for path in origin.weights:
        total.update(bytes.fromhex(files.file_digest(path)))
    return total.hexdigest()


def _model_options(module: Any) -> dict[str, Any]:
    """The module's options as settings: 0 for None, and numbers of the settings' types."""
    values = {}
    for field in dataclasses.fields(Model):
        if field.name not in _LOCAL_OPTIONS:
            value = getattr(module, field.name)
            value = field.type() if value is None else value
            values[field.name] = float(value) if field.type is float else value
    return values


def resolve_condition(settings: Settings) -> Settings:
    """Fills in condition.sha256 if labels come from a file.

    Raises:
      InputError: if the file is missing or not the one used before.
    """
    condition = settings.condition
    if condition.labels != "file":
        return settings
    digest = config_files.digest(condition.path, condition.sha256, "condition.path")
    return dataclasses.replace(settings, condition=dataclasses.replace(condition, sha256=digest))


def resolve_counts(settings: Settings) -> Settings:
    """Fills in data.num_members and data.num_heldout where the config asks for all images, which must be read for it.

    Raises:
      InputError: if the dataset can't be read or split, or has too few images for other settings.
    """
    data = settings.data
    if data.num_members and data.num_heldout:
        return settings
    made = split.make_split(datasets.load(data, private=settings.report.private), data, settings.seed)
    data = dataclasses.replace(data, num_members=len(made["members"]), num_heldout=len(made["heldout"]))
    logger.info("data: %d members and %d held-out images.", data.num_members, data.num_heldout)
    return dataclasses.replace(settings, data=data)


def resolve_features(settings: Settings, workdir: Path) -> Settings:
    """Fills in label.weights_sha256 and surrogate.teacher_sha256 if the run reads such files.

    A file with a recorded hash may be missing unless a stage still needs it.

    Args:
      settings: of the run, after resolve_target.
      workdir: of the run, where converted weights may lie; nothing is written.

    Raises:
      InputError: if a file is missing, not the one used before, or can't be used.
    """
    label, surrogate = settings.label, settings.surrogate
    if not (settings.extract.clusters_images or settings.uses_features):
        return settings
    if label.features in ("sscd", "onnx"):
        digest = config_files.digest(label.weights, label.weights_sha256, "label.weights")
        if Path(label.weights).is_file():
            if label.features == "sscd":
                sscd.read(label, workdir / "features")
            else:
                onnx.encoder(label, settings.data.channels)
        label = dataclasses.replace(label, weights_sha256=digest)
    if surrogate.objective == "tdkd" and surrogate.teacher_path:
        path, recorded = surrogate.teacher_path, surrogate.teacher_sha256
        surrogate = dataclasses.replace(
            surrogate, teacher_sha256=config_files.digest(path, recorded, "surrogate.teacher_path")
        )
        if Path(path).is_file():
            onnx.OnnxModel(path)
    return dataclasses.replace(settings, label=label, surrogate=surrogate)
