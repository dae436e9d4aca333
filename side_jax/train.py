"""Stage train alone: splits the data and trains the target DPM on the members.

Usage: python -m side_jax.train --config=configs/digits.py --workdir=runs/digits
"""

import sys

from side_jax.commands import cli

STAGES = ("train",)


def main() -> None:
    """The console entry point."""
    sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
