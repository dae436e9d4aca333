"""The one training loop, for the DPM and for both classifiers.

Step s uses batch s of a fixed shuffle and the key fold_in(key, s), so a run that was killed and goes on from a
checkpoint takes exactly the steps that it would have taken. Each step is dispatched from Python: on CPU, gradients of
convolutions inside an XLA loop are many times slower.
"""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboardX import SummaryWriter

from side_jax import files, parallel
from side_jax.checkpoint import Checkpoints
from side_jax.errors import InputError
from side_jax.progress import progress
from side_jax.settings import Fit

logger = logging.getLogger(__name__)

Params = Any
# (params, batch, key) -> (loss, further scalars to log)
LossFn = Callable[[Params, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of batch `step`, int64 [batch_size]: every epoch is a fresh shuffle, its ragged end is left out."""
    per_epoch = num_examples // batch_size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    return order[position * batch_size : (position + 1) * batch_size]


def make_optimizer(fit: Fit) -> optax.GradientTransformation:
    """AdamW with gradient clipping and a linear warm-up."""
    rate = optax.linear_schedule(0.0, fit.learning_rate, fit.warmup_steps) if fit.warmup_steps else fit.learning_rate
    return optax.chain(optax.clip_by_global_norm(fit.gradient_clip), optax.adamw(rate, weight_decay=fit.weight_decay))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The decay with warm-up, min(decay, (1 + step) / (10 + step)): early averages forget the initial values."""
    step = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1.0 + step) / (10.0 + step))


def train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    decay: float,
    state: dict,
    ema: Params,
    batch: Any,
    key: Any,
) -> tuple[dict, Params, dict[str, jax.Array]]:
    """One optimiser step; returns the new state {params, opt_state, step}, the new EMA and the scalars to log."""
    key = jax.random.fold_in(key, state["step"])
    (loss, scalars), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"], batch, key)
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    d = ema_decay(state["step"], decay)
    ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
    scalars = {"loss": loss, "gradient_norm": optax.tree.norm(grads)} | scalars
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, ema, scalars


def run(
    *,
    loss_fn: LossFn,
    init_fn: Callable[[], Params],
    examples: tuple[np.ndarray, ...],
    fit: Fit,
    seed: int,
    directory: Path,
    checkpoints: Path,
    meta: dict[str, Any],
    description: str,
) -> Params:
    """Trains, or goes on training, until fit.num_steps.

    Args:
      loss_fn: see LossFn; its batch is a tuple, one array for each of `examples`.
      init_fn: makes the initial parameters.
      examples: arrays with a common first axis, of which batches are drawn.
      fit: how to train.
      seed: of the shuffles and of each step's key.
      directory: for metrics.jsonl and the TensorBoard file.
      checkpoints: where to keep them.
      meta: for each checkpoint; holds `fingerprint`.
      description: for the progress bar.

    Returns:
      The averaged parameters, on the host.

    Raises:
      InputError: if the loss stops being finite, or a checkpoint can't be used.
    """
    optimizer = make_optimizer(fit)
    over = parallel.mesh()

    def initial() -> dict[str, Any]:
        params = init_fn()
        state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
        return {"state": state, "ema": jax.tree.map(jnp.array, params)}

    step_fn = jax.jit(functools.partial(train_step, loss_fn, optimizer, fit.ema_decay), donate_argnums=(0, 1))
    key = parallel.replicate(jax.random.key(seed), over)
    with Checkpoints(checkpoints) as store:
        if store.latest_step() is None:
            trees = parallel.replicate(initial(), over)
        else:
            trees = store.restore(fingerprint=meta["fingerprint"], **parallel.abstract(initial, over)).trees
        state, ema = trees["state"], trees["ema"]
        first = int(state["step"])
        if first:
            logger.info("%s: going on from the checkpoint of step %d of %d.", description, first, fit.num_steps)
        with _Log(directory, first) as log:
            todo = range(first, fit.num_steps)
            for step in progress(todo, total=fit.num_steps, description=description, unit="step", done=first):
                chosen = batch_indices(seed, step, len(examples[0]), fit.batch_size)
                batch = parallel.shard_batch(tuple(array[chosen] for array in examples), over)
                state, ema, scalars = step_fn(state, ema, batch, key)
                last = step + 1 == fit.num_steps
                if (step + 1) % fit.log_every == 0 or last:
                    log.write(
                        step + 1, (step + 1) * fit.batch_size / len(examples[0]), jax.device_get(scalars), fit.log_every
                    )
                if (step + 1) % fit.checkpoint_every == 0 or last:
                    store.save(step + 1, state=state, ema=ema, meta=meta)
    return jax.device_get(ema)


class _Log:
    """metrics.jsonl and TensorBoard scalars; on a restart, what lies beyond the restored step is dropped first."""

    def __init__(self, directory: Path, first_step: int):
        path = directory / "metrics.jsonl"
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines(keepends=True) if _step_of(line) <= first_step]
        with files.atomic(path, "w") as file:
            file.writelines(kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by __exit__
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, epoch: float, scalars: dict[str, Any], interval: int) -> None:
        row = {name: float(value) for name, value in scalars.items()}
        if not np.isfinite(row["loss"]):
            raise InputError(
                f"training diverged: the loss became {row['loss']} between steps {max(step - interval, 0)} and {step}; "
                "lower the learning_rate or the gradient_clip of that section."
            )
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 3)} | row) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")  # a line cut short by a kill
