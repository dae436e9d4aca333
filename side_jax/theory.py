"""Theorem 1 of Chen et al. 2024 in closed form, on mixtures of Gaussians: no images, no network.

Usage: python -m side_jax.theory --config=theory_gmm --workdir=runs/theory_gmm
"""

import sys

from side_jax.devices import signals


def main() -> None:
    """The console entry point."""
    with signals.handled():
        from side_jax.commands import cli  # takes seconds, in which signals are handled already

        sys.exit(cli.theory(sys.argv, __doc__))


if __name__ == "__main__":
    main()
