"""Makes targets of Python objects: a PyTorch module, or any function that predicts for given images and timesteps.

The whole audit runs on them by calls on the host; whatever needs derivatives of the model says so. Pass the target to
side_jax.audit. It has no file, so a run that continues in another process needs it again.
"""

import hashlib
from typing import Any

import numpy as np

from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.models import callback
from side_jax.models.callback import Callback, HostFn
from side_jax.settings import Diffusion
from side_jax.settings.target import OBJECT
from side_jax.targets.target_model import Origin, Target

FORMAT = OBJECT


def from_function(
    fn: HostFn,
    schedule: Schedule,
    shape: tuple[int, int, int],
    *,
    name: str,
    num_labels: int = 0,
    null_label: bool = True,
    num_parameters: int = 0,
) -> Target:
    """Makes a target of a function.

    Args:
      fn: (x float32 [b, h, w, c], t int32 or, between timesteps, float32 [b], labels int32 [b] or None) -> the
        prediction that schedule.prediction_type names, float32 [b, h, w, c]; all NumPy arrays. It must treat each image
        independently, may be called from several threads, and must not call JAX.
      schedule: the noise that the model was trained with; see side_jax.diffusion.schedule.make_schedule.
      shape: of its images, (height, width, channels).
      name: identifies the model and its weights. Runs tell models by it, so another model needs another name.
      num_labels: number of labels; 0: fn gets None for them.
      null_label: whether fn takes the label -1 for images without a label.
      num_parameters: of the model, for the report; 0: not known.

    Example:
      >>> import numpy as np
      >>> from side_jax.diffusion.schedule import make_schedule
      >>> from side_jax.targets import from_function
      >>> schedule = make_schedule("linear", 1000)
      >>> target = from_function(lambda x, t, labels: np.zeros_like(x), schedule, (8, 8, 1), name="predicts 0")
      >>> target.schedule.prediction_type
      'epsilon'
    """
    if not name:
        raise InputError("name is '', but it must identify the model and its weights; give it one.")
    return _target(
        fn, schedule, shape, hashlib.sha256(name.encode()).hexdigest(), name, num_labels, null_label, num_parameters
    )


def from_torch(
    module: Any, schedule: Schedule, shape: tuple[int, int, int], *, num_labels: int = 0, null_label: bool = True
) -> Target:
    """Makes a target of a PyTorch module, which stays where it is, on its own device, and is set to evaluation.

    Args:
      module: called as module(x, t), or module(x, t, labels) if it has labels, with x float32 [b, c, h, w] and t int64,
        or float32 between timesteps, [b]; returns a tensor of x's shape, or an object or tuple that has it as `sample`
        or first. A learned variance, in further channels, is left out.
      schedule: the noise that it was trained with, and what it predicts.
      shape: of its images, (height, width, channels).
      num_labels: number of labels; 0: an unconditional module.
      null_label: whether it takes the label num_labels for images without a label.

    The digest of its weights identifies it.
    """
    import torch

    module.eval()
    digest, channels = hashlib.sha256(), shape[2]
    for key, value in module.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    parameters = [*module.parameters()]
    device = parameters[0].device if parameters else torch.device("cpu")

    def fn(x: np.ndarray, t: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        times = torch.from_numpy(t.astype(np.int64 if t.dtype == np.int32 else np.float32))
        given = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), times]
        if labels is not None:
            given.append(torch.from_numpy(np.where(labels < 0, num_labels, labels).astype(np.int64)))
        with torch.no_grad():
            found = module(*(value.to(device) for value in given))
        found = getattr(found, "sample", found)
        found = found[0] if isinstance(found, tuple) else found
        return found[:, :channels].float().cpu().numpy().transpose(0, 2, 3, 1)

    count, name = sum(value.numel() for value in parameters), type(module).__name__
    return _target(fn, schedule, shape, digest.hexdigest(), name, num_labels, null_label, count)


def _target(
    fn: HostFn,
    schedule: Schedule,
    shape: tuple[int, int, int],
    digest: str,
    name: str,
    num_labels: int,
    null_label: bool,
    num_parameters: int,
) -> Target:
    callback.register(digest, fn)
    betas = tuple(schedule.betas.tolist())
    return Target(
        network=Callback(digest=digest, num_labels=num_labels, num_parameters=num_parameters),
        diffusion=Diffusion(num_timesteps=len(betas), trained_betas=betas, prediction_type=schedule.prediction_type),
        channels=shape[2],
        size=shape[:2],
        num_labels=num_labels,
        null_label=null_label,
        origin=Origin(format=FORMAT, weights=(), name=name, digest=digest, read_params=lambda: parameters_of(digest)),
    )


def parameters_of(digest: str) -> dict[str, np.ndarray]:
    """The parameters of a Callback: the 32 bytes of its digest, as numbers."""
    return {"digest": np.frombuffer(bytes.fromhex(digest), np.uint8).astype(np.float32)}


def require(digest: str) -> None:
    """Raises InputError if this process does not have the function of a digest."""
    if not callback.registered(digest):
        raise InputError(
            "the model of this run is a Python object, which no file holds; call side_jax.audit with the same workdir "
            "and target= that object again."
        )
