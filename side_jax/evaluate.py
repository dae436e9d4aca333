"""Stages evaluate and report: scores the images that the workdir holds.

Usage: python -m side_jax.evaluate --config=configs/digits.py --workdir=runs/digits
   or: python -m side_jax.evaluate --samples=PATH --members=PATH --heldout=PATH --out=DIR    (--samples --help)
   or: python -m side_jax.evaluate --suspects --workdir=runs/digits    (what an attacker without the data would suspect)
"""

import sys

from side_jax.commands import cli, sample_audit

STAGES = ("evaluate", "report")
SUSPECTS = ("suspects",)


def main() -> None:
    """The console entry point."""
    if sample_audit.asked(sys.argv[1:]):
        sys.exit(cli.audit_samples(sys.argv))
    argv = [argument for argument in sys.argv if argument != "--suspects"]
    sys.exit(cli.main(argv, __doc__, STAGES if argv == sys.argv else SUSPECTS))


if __name__ == "__main__":
    main()
