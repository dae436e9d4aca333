"""Stages evaluate and report: scores the images that the workdir holds.

Usage: python -m side_jax.evaluate --config=configs/digits.py --workdir=runs/digits
"""

import sys

from side_jax import cli

STAGES = ("evaluate", "report")


def main() -> None:
    """The console entry point."""
    sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
