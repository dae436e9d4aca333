"""The training loop of every network, on all devices of all processes.

Step s uses batch s of a fixed shuffle, and image i of that batch the key fold_in(fold_in(key, s), i). Hence a run that
resumes from a checkpoint takes the same steps as an uninterrupted one, and up to rounding they do not depend on the
number of devices and processes or on gradient accumulation. Each step is dispatched from Python, because gradients of
convolutions inside an XLA loop are many times slower on CPU.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from side_jax.devices import placement, process_group, signals
from side_jax.devices.preemption import Preemption
from side_jax.errors import InputError, StoppedError
from side_jax.models import adapters
from side_jax.models.classifier import split_trainable
from side_jax.progress import progress
from side_jax.settings import Fit
from side_jax.workdir.checkpoint import Checkpoints
from side_jax.workdir.curves import Curves

logger = logging.getLogger(__name__)

Params = Any
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name: (sum, count), of equal shape; logged as sum / count
# What a step changes without gradients: {}, or {"batch_stats": running statistics of BatchNorm}. Parameters under the
# key adapters.FROZEN change never.
NonTrainable = dict[str, Any]
# (params, batch, keys [b], key) -> (mean loss, (metrics, the updated non-trainable state));
# keys: one per example, key: for the whole batch
LossFn = Callable[[Params, Any, jax.Array, jax.Array], tuple[jax.Array, tuple[Metrics, NonTrainable]]]
# (step, averaged parameters on the host) -> whether to stop
WatchFn = Callable[[int, Params], bool]
_BATCH = 2**31  # folded into the first example's key, gives the key of the whole batch


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """The examples of batch `step`, int64 [batch_size]; each epoch is reshuffled and drops its incomplete batch."""
    per_epoch = num_examples // batch_size
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    return order[position * batch_size : (position + 1) * batch_size]


def learning_rate(fit: Fit) -> optax.Schedule:
    """The learning-rate schedule: linear warm-up from 0, then constant, or decaying to 0 at the last step."""
    rest = fit.num_steps - fit.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(fit.learning_rate),
        "linear": lambda: optax.linear_schedule(fit.learning_rate, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(fit.learning_rate, rest),
    }[fit.decay]()
    if not fit.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, fit.learning_rate, fit.warmup_steps)
    return optax.join_schedules([warmup, after], [fit.warmup_steps])


def make_optimizer(fit: Fit) -> optax.GradientTransformation:
    """AdamW with gradient clipping, on float32 parameters and moments."""
    adamw = optax.adamw(learning_rate(fit), weight_decay=fit.weight_decay)
    return optax.chain(optax.clip_by_global_norm(fit.gradient_clip), adamw)


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)): the warm-up lets early averages forget the initial values."""
    step = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1.0 + step) / (10.0 + step))


def gradients(loss_fn: LossFn, state: dict, batch: tuple, key: jax.Array) -> tuple[Params, Metrics, NonTrainable]:
    """(gradient of the mean loss for the trainable parameters, metrics, updated non-trainable state) of a batch.

    The last array of the batch holds each row's position in the whole batch.
    """
    *batch, position = batch
    key = jax.random.fold_in(key, state["step"])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)
    trainable, fixed = split_trainable(state["params"])

    def loss(trainable: Params) -> tuple[jax.Array, tuple[Metrics, NonTrainable]]:
        return loss_fn(trainable | fixed, tuple(batch), keys, jax.random.fold_in(keys[0], _BATCH))

    grads, (metrics, updated) = jax.grad(loss, has_aux=True)(trainable)
    return grads, metrics, updated


def accumulate(loss_fn: LossFn, sums: Any, state: dict, batch: tuple, key: jax.Array) -> Any:
    """Adds the `gradients` of a part to the sums over earlier parts of the batch."""
    return jax.tree.map(jnp.add, sums, gradients(loss_fn, state, batch, key))


def update(
    optimizer: optax.GradientTransformation, fit: Fit, state: dict, ema: Params, sums: Any
) -> tuple[dict, Params]:
    """One optimiser step, from the sums of `gradients` over all parts; returns (state, ema).

    Gradients and non-trainable state are averaged over the parts. The state is {params, opt_state, step, totals};
    totals sums the metrics since the last multiple of fit.log_every, so that logged values are means over all steps and
    a NaN in any step shows.
    """
    grads, metrics, updated = sums
    grads, updated = jax.tree.map(lambda g: g / fit.accumulate, (grads, updated))
    trainable, fixed = split_trainable(state["params"])
    updates, opt_state = optimizer.update(grads, state["opt_state"], trainable)
    params = optax.apply_updates(trainable, updates) | fixed | updated
    d = ema_decay(state["step"], fit.ema_decay)
    ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, {name: params[name] for name in ema})
    metrics = metrics | {"gradient_norm": (optax.tree.norm(grads), jnp.float32(1))}
    fresh = state["step"] % fit.log_every == 0
    totals = jax.tree.map(lambda total, new: jnp.where(fresh, new, total + new), state["totals"], metrics)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1, "totals": totals}, ema


@dataclasses.dataclass(frozen=True)
class _Programs:
    """The compiled parts of a step; see `gradients`, `accumulate` and `update`."""

    whole: Callable
    first: Callable
    more: Callable
    update: Callable


@functools.lru_cache(maxsize=4)  # networks that differ only in their data and seeds share one program
def _programs(loss_fn: LossFn, fit: Fit) -> _Programs:
    optimizer = make_optimizer(fit)

    def whole(state: dict, ema: Params, batch: tuple, key: jax.Array) -> tuple[dict, Params]:
        return update(optimizer, fit, state, ema, gradients(loss_fn, state, batch, key))

    return _Programs(
        whole=jax.jit(whole, donate_argnums=(0, 1)),
        first=jax.jit(functools.partial(gradients, loss_fn)),
        more=jax.jit(functools.partial(accumulate, loss_fn), donate_argnums=0),
        update=jax.jit(functools.partial(update, optimizer, fit), donate_argnums=(0, 1)),
    )


@functools.lru_cache(maxsize=4)
def _beginning(loss_fn: LossFn, fit: Fit, example: tuple[jax.ShapeDtypeStruct, ...]) -> Callable[[Params], dict]:
    """Maps initial parameters to {state, ema}, for batches like the example."""

    def begin(params: Params) -> dict[str, Any]:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(example[0])))
        key = jax.eval_shape(lambda: jax.random.key(0))
        metrics, _ = jax.eval_shape(loss_fn, params, example, keys, key)[1]
        metrics["gradient_norm"] = (jnp.float32(0), jnp.float32(0))
        opt_state = make_optimizer(fit).init(split_trainable(params)[0])
        totals = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
        state = {"params": params, "opt_state": opt_state, "step": jnp.int32(0), "totals": totals}
        return {"state": state, "ema": jax.tree.map(jnp.array, adapters.changing(params))}

    return begin


class Stepper:
    """The compiled training step."""

    def __init__(self, loss_fn: LossFn, init_fn: Callable[[], Params], fit: Fit, example: tuple[np.ndarray, ...]):
        """Prepares the compiled functions.

        Args:
          loss_fn: see LossFn.
          init_fn: returns the initial parameters.
          fit: the training settings.
          example: a batch of any length, which gives the shapes and dtypes.
        """
        self._init_fn = init_fn
        self._mesh = placement.training_mesh()
        self._part = fit.batch_size // fit.accumulate
        self._rows = placement.local_rows(self._part, self._mesh)
        shapes = tuple(jax.ShapeDtypeStruct((self._part, *a.shape[1:]), a.dtype) for a in example)
        self._begin, self._programs = _beginning(loss_fn, fit, shapes), _programs(loss_fn, fit)

    def initial(self) -> tuple[dict, Params]:
        """(state, ema) before the first step, on all devices."""
        params = placement.place(jax.device_get(self._init_fn()), self._mesh)
        trees = placement.replicated(self._begin, self._mesh, params)
        return trees["state"], trees["ema"]

    def with_frozen(self, state: dict) -> dict:
        """The state of a checkpoint, which lacks what never changes, with that."""
        frozen = placement.place(jax.device_get(self._init_fn()[adapters.FROZEN]), self._mesh)
        return state | {"params": state["params"] | {adapters.FROZEN: frozen}}

    def abstract(self) -> dict[str, Any]:
        """The shapes, dtypes and shardings of {state, ema}."""
        return placement.abstract(lambda: self._begin(self._init_fn()), self._mesh)

    def key(self, seed: int) -> jax.Array:
        """A typed key, replicated to all devices."""
        return placement.replicated(jax.random.key, self._mesh, np.uint32(seed))

    def load(self, fetch: Callable[[np.ndarray], tuple[np.ndarray, ...]], chosen: np.ndarray) -> list[tuple]:
        """Places the examples `chosen` on the devices, part by part; each process fetches only its own rows."""
        parts = []
        for start in range(0, len(chosen), self._part):
            rows = start + self._rows
            local = (*fetch(chosen[rows]), rows.astype(np.uint32))
            parts.append(placement.shard_batch(local, self._rows, self._part, self._mesh))
        return parts

    def __call__(self, state: dict, ema: Params, parts: list[tuple], key: jax.Array) -> tuple[dict, Params]:
        """One optimiser step; donates the buffers of state and ema."""
        if len(parts) == 1:
            return self._programs.whole(state, ema, parts[0], key)
        sums = self._programs.first(state, parts[0], key)
        for part in parts[1:]:
            sums = self._programs.more(sums, state, part, key)
        return self._programs.update(state, ema, sums)


def run(
    *,
    loss_fn: LossFn,
    init_fn: Callable[[], Params],
    fetch: Callable[[np.ndarray], tuple[np.ndarray, ...]],
    num_examples: int,
    fit: Fit,
    seed: int,
    directory: Path,
    checkpoints: Path,
    meta: dict[str, Any],
    description: str,
    watch: WatchFn | None = None,
    watch_every: int = 0,
    loader: Callable[[Callable[[int], Any], range], Any] = map,
    keep: int | None = 2,
) -> tuple[Params, int]:
    """Trains until fit.num_steps or until `watch` returns True; continues from the latest checkpoint.

    Args:
      loss_fn: see LossFn; its batch is the tuple that fetch returns.
      init_fn: returns the initial parameters.
      fetch: maps indices int64 [k] to a tuple of arrays [k, ...], the examples.
      num_examples: the number of examples.
      fit: the training settings.
      seed: of the shuffles and of each step's key.
      directory: the folder of metrics.jsonl and the TensorBoard file.
      checkpoints: the folder of the checkpoints.
      meta: recorded with each checkpoint; has the key `fingerprint`.
      description: for the progress bar.
      watch: called every watch_every steps, before a checkpoint of that step.
      watch_every: steps between calls of watch; 0: never.
      loader: maps a function over the steps in order, as `map` does; may prefetch in threads.
      keep: number of newest checkpoints to keep; None: all.

    Returns:
      (the averaged parameters on the host, the last step).

    Raises:
      InputError: if the loss stops being finite, or a checkpoint can't be used.
      StoppedError: on SIGTERM or Ctrl-C, after a checkpoint is saved.
    """
    stepper = Stepper(loss_fn, init_fn, fit, fetch(np.zeros(1, np.int64)))
    key = stepper.key(seed)
    with Checkpoints(checkpoints, keep=keep) as store, Preemption() as preemption:
        state, ema = _begin(stepper, store, meta["fingerprint"])
        first = done = int(state["step"])
        preemption.begins(first)  # an earlier signal stops the barrier
        process_group.barrier(f"{description} begins")
        if first:
            logger.info("%s: continuing from the checkpoint of step %d of %d.", description, first, fit.num_steps)

        def load(step: int) -> list[tuple]:
            return stepper.load(fetch, batch_indices(seed, step, num_examples, fit.batch_size))

        # Asks watch again at the restored step: the killed run may not have acted on its answer.
        stop = bool(first and watch and first % watch_every == 0 and watch(first, jax.device_get(ema)))
        todo = range(first, first if stop else fit.num_steps)
        with _curves(directory, first) as curves, contextlib.ExitStack() as around:
            log = _Log(curves, fit, num_examples, first)
            options = {"total": fit.num_steps, "description": description, "unit": "step", "done": first}
            batches = around.enter_context(contextlib.closing(progress(loader(load, todo), main=True, **options)))
            for done, parts in enumerate(batches, start=first + 1):
                state, ema = stepper(state, ema, parts, key)
                stop = bool(watch and done % watch_every == 0 and watch(done, jax.device_get(ema)))
                last = stop or done == fit.num_steps
                preempted = preemption.reached(done)
                save = last or preempted or done % fit.checkpoint_every == 0
                if save or done % fit.log_every == 0:
                    log(done, jax.device_get(state["totals"]), last)
                if save:
                    store.save(done, state=_changing(state), ema=ema, meta=meta)
                if stop or preempted:
                    break
        store.wait()
        if preemption.happened:
            raise StoppedError(
                f"{description}: stopped by {signals.cause()} after step {done} of {fit.num_steps}, which is saved; "
                "run the same command again to continue."
            )
    return jax.device_get(ema), done


def _begin(stepper: Stepper, store: Checkpoints, fingerprint: str) -> tuple[dict, Params]:
    """(state, ema) of the latest checkpoint; without one, the initial ones."""
    if store.latest_step() is None:
        return stepper.initial()
    abstract = stepper.abstract()
    trees = store.restore(fingerprint=fingerprint, state=_changing(abstract["state"]), ema=abstract["ema"]).trees
    state, ema = trees["state"], trees["ema"]
    return (stepper.with_frozen(state) if adapters.FROZEN in abstract["state"]["params"] else state), ema


def _changing(state: dict) -> dict:
    """The state without what never changes, which may be the largest part and need not be in a checkpoint."""
    return state | {"params": adapters.changing(state["params"])}


def _curves(directory: Path, first: int) -> Curves:
    """The curves in metrics.jsonl and the TensorBoard folder, which the first process writes."""
    board, write = directory / "tensorboard", process_group.primary()
    return Curves(directory / "metrics.jsonl", first_step=first, board=board, write=write)


class _Log:
    """Checks the metrics before a checkpoint is saved, and writes their means to the curves."""

    def __init__(self, curves: Curves, fit: Fit, num_examples: int, first: int):
        """Starts at step `first`."""
        self._curves, self._fit, self._num_examples, self._checked = curves, fit, num_examples, first

    def __call__(self, step: int, totals: dict[str, Any], last: bool) -> None:
        """Checks the totals of a step; writes a row at every multiple of fit.log_every and after the last step.

        Raises:
          InputError: if the loss of any step since the last call was not finite.
        """
        row = _means(totals, self._checked, step)
        self._checked = step
        if last or step % self._fit.log_every == 0:
            epoch = round(step * self._fit.batch_size / self._num_examples, 3)
            self._curves.write({"step": step, "epoch": epoch} | row)


def _means(totals: dict[str, Any], checked: int, step: int) -> dict[str, Any]:
    """The mean metrics, as numbers or lists; None marks list entries without any value.

    Raises:
      InputError: if the loss of any step since `checked` was not finite.
    """
    if not np.isfinite(totals["loss"][0]):
        raise InputError(
            f"training diverged: the loss became {totals['loss'][0]} between steps {checked} and {step}; "
            "lower the learning_rate or the gradient_clip of that section."
        )
    row = {}
    for name, (total, count) in totals.items():
        mean = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=np.asarray(count) > 0)
        row[name] = [float(v) if np.isfinite(v) else None for v in mean] if mean.ndim else float(mean)
    return row
