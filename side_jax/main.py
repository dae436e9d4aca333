"""Audits a diffusion model: trains it or reads it, attacks it, and reports which training images come out.

Usage: python -m side_jax.main --config=digits --workdir=runs/digits
   or: python -m side_jax.main --workdir=runs/digits --config.extract.num_images=4096    (with the saved config)
   or: python -m side_jax.main verify --workdir=runs/digits    (also clean and share; each has a --help)
   or: python -m side_jax.main compare runs/a runs/b --out=runs/a_b
"""

import sys

from side_jax.devices import signals


def main() -> None:
    """The console entry point."""
    with signals.handled():
        from side_jax.commands import cli  # takes seconds, in which signals are handled already
        from side_jax.stages import stage_table

        if run := cli.subcommand(sys.argv[1:]):
            sys.exit(run(sys.argv))
        sys.exit(cli.main(sys.argv, __doc__, stage_table.audit_stages()))


if __name__ == "__main__":
    main()
