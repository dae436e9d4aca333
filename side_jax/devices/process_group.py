"""Processes: joining them, waiting for each other, and sharing work and errors."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from side_jax.errors import InputError, StoppedError

_passed: list[str] = []  # the barriers behind this process; all processes come to the same ones in one order

_SIGTERM = "RECEIVED_PREEMPTION_NOTICE"  # JAX sets this key for all, about a second after any process got the signal


def join(processes: int, coordinator: str | None, process_id: int | None) -> None:
    """Joins this process with others, before any computation; on TPU and Slurm JAX finds the others by itself.

    Args:
      processes: how many there must be in all; 1 joins nothing.
      coordinator: HOST:PORT of the first process, or None to let JAX find it.
      process_id: 0..processes-1, or None to let JAX find it.

    Raises:
      InputError: if another number of processes came together: each would run an audit of its own.
    """
    if processes == 1:
        return
    try:
        jax.distributed.initialize(coordinator, processes if coordinator else None, process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--processes={processes} could not be joined ({reason}); see --coordinator.") from None
    with together():
        if jax.process_count() != processes:
            raise InputError(f"--processes={processes} was asked for, but {jax.process_count()} came together.")
        barrier("counted")
    if jax.default_backend() == "cpu":  # where what several processes read back from one waits forever (JAX 0.10.2)
        jax.config.update("jax_enable_compilation_cache", False)
    # Now all are here, so the devices connect at once. Later, one may be busy for longer than a connection waits.
    multihost_utils.sync_global_devices("joined")


def primary() -> bool:
    """Whether this process is the one that writes what belongs to all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, however long one is busy: by JAX's coordination service, not by devices.

    Raises:
      InputError: if another process failed, at once: it will never come.
      StoppedError: if any process was sigterm_received to end.
    """
    if jax.process_count() == 1:
        return
    check_others()
    if sigterm_received():
        raise StoppedError("stopped by SIGTERM; run the same command again to go on.")
    client = multihost.get_jax_distributed_client()
    if client.key_value_increment(f"{_gate()} {name}", 1) == jax.process_count():
        client.key_value_set(_gate(), "")
    _raise_outcome(client.blocking_key_value_get(_gate(), 24 * 3600 * 1000))
    _passed.append(name)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what the processes share: an error that ends one ends the others where they next wait or sample."""
    try:
        yield
    except BaseException as error:
        if multihost.is_jax_distributed_client_initialized():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # an earlier error stands, or JAX's service is gone
                multihost.get_jax_distributed_client().key_value_set(_gate(), _outcome(error))
        raise


def check_others() -> None:
    """Raises what `barrier` would, if another process failed or stopped since the last one."""
    _raise_outcome(_value(_gate()))


def sigterm_received() -> bool:
    """Whether any of several processes got SIGTERM, which JAX then catches in all of them."""
    return _value(_SIGTERM) is not None


def _gate() -> str:
    """The key that opens the next barrier; its value is empty, or says why there won't be one."""
    return f"side_jax barrier {len(_passed)}"


def _value(key: str) -> str | None:
    """What JAX's coordination service says of a key, if anything."""
    if not multihost.is_jax_distributed_client_initialized():
        return None
    try:
        return multihost.get_jax_distributed_client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:  # no such key; or no such service, for which JAX itself ends the process
        return None


def _outcome(error: BaseException) -> str:
    """An error as the value of a gate."""
    sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, StoppedError):
        return f"stopped {sentence}"
    return f"failed process {jax.process_index()} failed: {sentence}"


def _raise_outcome(outcome: str | None) -> None:
    """Raises what a gate says."""
    if outcome:
        kind, _, sentence = outcome.partition(" ")
        raise {"stopped": StoppedError, "failed": InputError}[kind](sentence)


def share(count: int) -> range:
    """Which of `count` pieces of work are this process's: a contiguous range, nearly as long as every other's."""
    of, all_of = jax.process_index(), jax.process_count()
    return range(count * of // all_of, count * (of + 1) // all_of)
