"""Stages evaluate and report: scores the generated images in a workdir and writes the report.

Usage: python -m side_jax.evaluate --workdir=runs/digits
   or: python -m side_jax.evaluate --suspects --workdir=runs/digits
   or: python -m side_jax.evaluate --samples=PATH --members=PATH --heldout=PATH --out=DIR

The last form audits images alone, without a model; its options: python -m side_jax.evaluate --samples --help
"""

import sys

from side_jax.devices import signals

STAGES = ("evaluate", "report")
SUSPECTS = ("suspects",)


def main() -> None:
    """The console entry point."""
    with signals.handled():
        from side_jax.commands import cli  # takes seconds, in which signals are handled already

        if cli.asks_for_samples(sys.argv[1:]):
            sys.exit(cli.audit_samples(sys.argv))
        sys.exit(cli.main(sys.argv, __doc__, STAGES, suspects_stages=SUSPECTS))


if __name__ == "__main__":
    main()
