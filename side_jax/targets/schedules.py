"""Converts diffusers' scheduler_config.json to and from a noise schedule."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from side_jax.diffusion.schedule import Schedule, make_schedule
from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.targets.checkpoint_files import REPLACE, join_values, read_json, unet_folder

logger = logging.getLogger(__name__)

_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
# The classes of diffusers whose noise is the discrete process of DDPM. Each has its own beta_start and beta_end where a
# config leaves them out, and its own clip_sample; None: it never clips, whatever the config says.
_USUAL, _OTHER = (1e-4, 0.02), (0.00085, 0.012)
SCHEDULERS: dict[str, tuple[tuple[float, float], bool | None]] = {
    "DDPMScheduler": (_USUAL, True),
    "DDPMParallelScheduler": (_USUAL, True),
    "DDIMScheduler": (_USUAL, True),
    "DDIMParallelScheduler": (_USUAL, True),
    "DDIMInverseScheduler": (_USUAL, True),
    "RePaintScheduler": (_USUAL, True),
    "PNDMScheduler": (_USUAL, None),
    "DPMSolverMultistepScheduler": (_USUAL, None),
    "DPMSolverMultistepInverseScheduler": (_USUAL, None),
    "DPMSolverSinglestepScheduler": (_USUAL, None),
    "DPMSolverSDEScheduler": (_OTHER, None),
    "UniPCMultistepScheduler": (_USUAL, None),
    "DEISMultistepScheduler": (_USUAL, None),
    "SASolverScheduler": (_USUAL, None),
    "EulerDiscreteScheduler": (_USUAL, None),
    "EulerAncestralDiscreteScheduler": (_USUAL, None),
    "LMSDiscreteScheduler": (_USUAL, None),
    "HeunDiscreteScheduler": (_OTHER, False),
    "KDPM2DiscreteScheduler": (_OTHER, None),
    "KDPM2AncestralDiscreteScheduler": (_OTHER, None),
}
# The one of score models, and its noises where a config leaves them out.
EXPLODING = "ScoreSdeVeScheduler"
_EXPLODING = {"sigma_min": 0.01, "sigma_max": 1348.0, "num_train_timesteps": 2000}
# With other values than these, the same classes sample other models: of flow matching, and of EDM's noise levels.
_DISCRETE = {"use_flow_sigmas": False, "timestep_type": "discrete"}
# How diffusion.sampler samples. A scheduler with other values is sampled in this way too, with a warning.
_SAMPLER_OPTIONS = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False}
_LATENT_OPTIONS = {"clip_sample": False, "thresholding": False}


def read_noise(folder: Path, *, latent: bool = False) -> Diffusion:
    """Reads the noise schedule and the prediction type from scheduler_config.json.

    Args:
      folder: of the U-Net.
      latent: whether the model's images are latents, which are not clipped.

    Raises:
      InputError: if the file is missing, damaged, or of an unsupported kind.
    """
    path = _path(folder)
    config = read_json(path)
    name = _class_name(path, config)
    (beta_start, beta_end), clips = SCHEDULERS[name]
    prediction, kind = config.get("prediction_type", "epsilon"), config.get("beta_schedule", "linear")
    if prediction not in [*_PREDICTIONS]:
        raise InputError(
            f"{path} has prediction_type = {json.dumps(prediction)}; give a model with {join_values(_PREDICTIONS)}."
        )
    if config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"{path} has rescale_betas_zero_snr = true, a schedule that ends without signal, which is not supported; "
            "give a model trained without it."
        )
    _warn_of_clipping(path, config, name, clips, latent)
    trained = config.get("trained_betas")
    if trained is None and kind not in [*_SCHEDULES]:
        raise InputError(
            f"{path} has beta_schedule = {json.dumps(kind)}; give a model with {join_values(_SCHEDULES)}, or write its "
            "betas as trained_betas there."
        )
    try:
        options: dict[str, Any] = {
            "schedule": _SCHEDULES.get(kind, "linear"),
            "num_timesteps": int(config.get("num_train_timesteps", 1000)) if trained is None else len(trained),
            "beta_start": float(config.get("beta_start", beta_start)),
            "beta_end": float(config.get("beta_end", beta_end)),
            "prediction_type": _PREDICTIONS[prediction],
            "trained_betas": tuple(float(beta) for beta in trained or ()),
        }
        # Build the schedule now, so that impossible values are reported with the name of their file.
        make_schedule(*options.values())
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} describes no noise schedule ({error}); {REPLACE}.") from None
    return Diffusion(**options)


def read_exploding_noise(folder: Path) -> dict[str, Any]:
    """Reads the noise of an NCSN++: sigma_min, sigma_max and num_timesteps, as models/continuous.py has them.

    Args:
      folder: of the U-Net.

    Raises:
      InputError: if the file is missing, damaged, or of another scheduler.
    """
    path = _path(folder)
    config = read_json(path)
    name = config.get("_class_name")
    if name != EXPLODING:
        raise InputError(
            f"{path} has _class_name = {json.dumps(name)}, but the score model beside it is read with the noise of a "
            f"{EXPLODING} alone; put there the scheduler_config.json of its training."
        )
    given = {key: config.get(key, usual) for key, usual in _EXPLODING.items()}
    low, high, steps = given.values()
    for key, value in given.items():
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise InputError(f"{path} has {key} = {json.dumps(value)}, which is no noise; {REPLACE}.")
    if low >= high or type(steps) is not int or steps < 2:
        raise InputError(f"{path} describes no noise between {low} and {high} in {steps} steps; {REPLACE}.")
    return {"sigma_min": float(low), "sigma_max": float(high), "num_timesteps": steps}


def _path(folder: Path) -> Path:
    """The scheduler_config.json of a U-Net."""
    folder = unet_folder(folder)
    places = [folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise InputError(
            f"{folder} has no scheduler_config.json beside config.json or in ../scheduler; it describes the noise that "
            "the model was trained with, so put there the one of its training."
        )
    return path


def _class_name(path: Path, config: dict[str, Any]) -> str:
    """The scheduler's class, one of SCHEDULERS."""
    name = config.get("_class_name")
    if name is None:
        logger.warning("%s has no _class_name; it is read as that of a DDPMScheduler.", path)
        return "DDPMScheduler"
    what = [("_class_name", name)] if name not in [*SCHEDULERS] else []
    what += [(key, config[key]) for key, usual in _DISCRETE.items() if config.get(key, usual) not in (usual, None)]
    if what:
        key, value = what[0]
        raise InputError(
            f"{path} has {key} = {json.dumps(value)}, which is not known to be DDPM's discrete noise; only models "
            "trained with that are read, whose schedulers have betas (DDPMScheduler, DDIMScheduler, PNDMScheduler and "
            "others); give such a model, with the scheduler_config.json of its training."
        )
    return name


def _warn_of_clipping(path: Path, config: dict[str, Any], name: str, clips: bool | None, latent: bool) -> None:
    """Says where the scheduler would sample otherwise than diffusion.sampler; `clips` as in SCHEDULERS."""
    given = {"clip_sample": clips} | config
    different = [
        f"{key} = {json.dumps(given[key])}"
        for key, value in (_LATENT_OPTIONS if latent else _SAMPLER_OPTIONS).items()
        if given.get(key, value) != value and (clips is not None or key == "thresholding")
    ]
    if clips is None and not different and not latent:
        different = [f"_class_name = {json.dumps(name)}, which does not clip"]
    here = "latents are not clipped" if latent else "images are clipped to [-1, 1] at each step"
    if different:
        logger.warning("%s has %s; %s here regardless.", path, ", ".join(different), here)


def scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """Returns a schedule as scheduler_config.json, with its betas in full precision."""
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": schedule.num_timesteps,
        "trained_betas": schedule.betas.tolist(),
        "prediction_type": {name: key for key, name in _PREDICTIONS.items()}[schedule.prediction_type],
        "clip_sample": True,
        "variance_type": "fixed_small",
    }
