"""Stages synthesize, label, surrogate and extract: attacks the DPM in a workdir.

Usage: python -m side_jax.extract --workdir=runs/digits
"""

import sys

from side_jax.commands import cli

STAGES = ("synthesize", "label", "surrogate", "extract")


def main() -> None:
    """The console entry point."""
    sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
