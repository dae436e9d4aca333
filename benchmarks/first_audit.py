"""Profiles an audit: seconds of each stage, the compilation time in them, and CPU-seconds.

python benchmarks/first_audit.py --config=configs/digits.py --workdir=runs/profile

Runs the stages in this process. "compile" is XLA's time for compiling programs or loading them from the cache, "trace"
JAX's time for tracing and lowering them; both are parts of the stage's seconds.
"""

import argparse
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
from ml_collections import config_flags  # noqa: F401  (the config file needs its loader)

from side_jax.commands import cli
from side_jax.stages import stage_table

EVENTS = {
    "/jax/core/compile/backend_compile_duration": "compile",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
}


def cpu_seconds() -> float:
    """CPU-seconds of this process and of the child processes that it waited for."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", required=True, type=Path, help="of the run; an empty one for a whole audit")
    options, overrides = parser.parse_known_args()
    spent, programs = defaultdict(float), 0

    def listen(event: str, seconds: float, **_: object) -> None:
        nonlocal programs
        if event in EVENTS:
            spent[EVENTS[event]] += seconds
            programs += EVENTS[event] == "compile"

    jax.monitoring.register_event_duration_secs_listener(listen)
    print("| stage | seconds | CPU-seconds | compile | trace | programs |\n|---|---|---|---|---|---|")
    total = defaultdict(float)
    for stage in stage_table.audit_stages():
        before, programs = dict(spent), 0
        wall, cpu = time.perf_counter(), cpu_seconds()
        sys.modules.pop("config_config", None)  # otherwise ml_collections reuses the last file's namespace
        argv = ["side_jax", f"--config={options.config}", f"--workdir={options.workdir}", *overrides]
        if code := cli.main(argv, "", [stage]):
            sys.exit(code)
        row = {"seconds": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
        row |= {kind: spent[kind] - before.get(kind, 0.0) for kind in ("compile", "trace")}
        print(f"| {stage} | " + " | ".join(f"{value:.1f}" for value in row.values()) + f" | {programs} |", flush=True)
        for name, value in row.items():
            total[name] += value
    print("| all | " + " | ".join(f"{value:.1f}" for value in total.values()) + " | |")


if __name__ == "__main__":
    main()
