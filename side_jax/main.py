"""Runs the whole audit, or the stages named by --stages, in one workdir.

Usage: python -m side_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import sys

from side_jax.commands import cli
from side_jax.stages import stage_table

STAGES = stage_table.audit_stages()


def main() -> None:
    """The console entry point."""
    sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
