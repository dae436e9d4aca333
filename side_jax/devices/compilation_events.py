"""Tells what shows progress when JAX begins to compile a program, and when it is done."""

import jax

from side_jax.progress import WATCH

# JAX tells a program's phases when they end: traced (also the functions in it), lowered, compiled.
_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_listening: list[bool] = []


def listen() -> None:
    """Begins to tell; once for a process, since earlier versions of JAX take no listener back."""
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_heard)
        _listening.append(True)


def _heard(event: str, duration: float, **_: object) -> None:
    if event in (_TRACED, _LOWERED):
        WATCH.compiles(True, sure=event == _LOWERED)
    elif event == _COMPILED:
        WATCH.compiles(False)
