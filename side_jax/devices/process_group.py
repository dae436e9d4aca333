"""Cooperating processes: joining, barriers, division of work, and propagation of errors."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from side_jax.devices import signals
from side_jax.errors import InputError, StoppedError

_passed: list[str] = []  # names of the barriers passed so far; all processes pass the same ones in the same order

# JAX sets this key for all processes, about a second after one receives the signal.
_SIGTERM = "RECEIVED_PREEMPTION_NOTICE"


def join(processes: int, coordinator: str | None, process_id: int | None) -> None:
    """Joins this process with the others, before any computation; on TPU and Slurm JAX detects the arguments itself.

    Args:
      processes: the expected total; 1 joins nothing.
      coordinator: HOST:PORT of the first process, or None to let JAX detect it.
      process_id: 0..processes-1, or None to let JAX detect it.

    Raises:
      InputError: if joining fails or another number of processes joined.
    """
    if processes == 1:
        return
    try:
        jax.distributed.initialize(coordinator, processes if coordinator else None, process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--processes={processes} could not be joined ({reason}); see --coordinator.") from None
    signals.share()
    with propagate_errors():
        if jax.process_count() != processes:
            count = jax.process_count()
            raise InputError(
                f"--processes={processes} was given, but {count} processes joined; give each of them {count}."
            )
        barrier("counted")
    # Several CPU processes that load cached executables wait forever for each other (JAX 0.10.2).
    if jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
    # Connect the devices now, while no process is busy: later, one may be busy for longer than the connection timeout.
    multihost_utils.sync_global_devices("joined")


def primary() -> bool:
    """Whether this is the process that writes the shared files."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process calls this, without a timeout: uses JAX's coordination service, not the devices.

    Raises:
      InputError: as soon as another process fails.
      StoppedError: if any process received SIGTERM.
    """
    if jax.process_count() == 1:
        return
    check_others()
    if sigterm_received():
        raise StoppedError(f"stopped by {signals.cause()}; run the same command again to continue.")
    client = multihost.get_jax_distributed_client()
    if client.key_value_increment(f"{_gate()} {name}", 1) == jax.process_count():
        client.key_value_set(_gate(), "")
    _raise_outcome(client.blocking_key_value_get(_gate(), 24 * 3600 * 1000))
    _passed.append(name)


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Makes an error in the block end the other processes too, at their next barrier or sampled batch."""
    try:
        yield
    except BaseException as error:
        if multihost.is_jax_distributed_client_initialized():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # already set, or no service
                multihost.get_jax_distributed_client().key_value_set(_gate(), _outcome(error))
        raise


def check_others() -> None:
    """Raises as `barrier` does if another process failed or stopped since the last barrier; does not wait."""
    _raise_outcome(_value(_gate()))


def sigterm_received() -> bool:
    """Whether any of several processes received SIGTERM, by JAX's handler; always False for a single process."""
    return _value(_SIGTERM) is not None


def _gate() -> str:
    """The key that opens the next barrier; its value is empty, or the error that replaces it."""
    return f"side_jax barrier {len(_passed)}"


def _value(key: str) -> str | None:
    """The value of a key in JAX's coordination service; None if it has none."""
    if not multihost.is_jax_distributed_client_initialized():
        return None
    try:
        return multihost.get_jax_distributed_client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:  # no such key; or no service, in which case JAX ends the process
        return None


def _outcome(error: BaseException) -> str:
    """An error, encoded as the value of a gate."""
    sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, StoppedError):
        return f"stopped {sentence}"
    return f"failed process {jax.process_index()} failed: {sentence}"


def _raise_outcome(outcome: str | None) -> None:
    """Raises the error that a gate's value encodes, if any."""
    if outcome:
        kind, _, sentence = outcome.partition(" ")
        raise {"stopped": StoppedError, "failed": InputError}[kind](sentence)


def own_range(count: int) -> range:
    """The part of range(count) for this process: contiguous, and of nearly equal length on all processes."""
    process, processes = jax.process_index(), jax.process_count()
    return range(count * process // processes, count * (process + 1) // processes)
