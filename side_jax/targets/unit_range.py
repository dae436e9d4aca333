"""Takes a model of pixels in [0, 1] as one of pixels in [-1, 1] (models/unit_pixels.py)."""

import dataclasses
from typing import Any

from side_jax.models.continuous import grid_betas
from side_jax.models.unit_pixels import UnitPixels
from side_jax.targets.target_model import Target


def is_unit(target: Target) -> bool:
    """Whether a model has pixels in [0, 1]."""
    return isinstance(target.network, UnitPixels)


def with_unit_pixels(target: Target, notes: tuple[str, ...] = ()) -> Target:
    """The same network and parameters, as a model of pixels in [0, 1]; `notes`: more of them, see Origin."""
    diffusion, origin = target.diffusion, target.origin
    betas = tuple(target.schedule.betas.tolist())
    network = UnitPixels(net=target.network, betas=betas, prediction_type=diffusion.prediction_type)

    def read_params() -> Any:
        return {"net": origin.read_params()}

    return dataclasses.replace(
        target,
        network=network,
        diffusion=dataclasses.replace(diffusion, trained_betas=tuple(grid_betas(network.noise_levels).tolist())),
        origin=dataclasses.replace(origin, read_params=read_params, notes=(*origin.notes, *notes)),
    )
