"""Stage train: splits the data into members and held-out images, and trains the DPM on the members.

Usage: python -m side_jax.train --config=digits --workdir=runs/digits
"""

import sys

from side_jax.devices import signals

STAGES = ("train",)


def main() -> None:
    """The console entry point."""
    with signals.handled():
        from side_jax.commands import cli  # takes seconds, in which signals are handled already

        sys.exit(cli.main(sys.argv, __doc__, STAGES))


if __name__ == "__main__":
    main()
