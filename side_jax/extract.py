"""Stages synthesize, label, surrogate and extract: attacks the DPM in a workdir.

Usage: python -m side_jax.extract --workdir=runs/digits
"""

import sys

from side_jax.devices import signals

STAGES = ("synthesize", "label", "surrogate", "extract")


def main() -> None:
    """The console entry point."""
    with signals.handled():
        from side_jax.commands import cli  # takes seconds, in which signals are handled already

        sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
