"""Named random streams: every purpose has a seed of its own, derived from config.seed and a number written down here.

The number belongs to the name, not to its place, so a new stream takes a number that no other has and moves no image.
"""

import jax
import numpy as np

from side_jax.attacks.table import known_classifiers
from side_jax.settings import Settings

# The classifiers' numbers (4, 5, 9 to 12) are in attacks/table.py, each beside its classifier.
STREAMS = {
    "train": 1,
    "synthesize": 2,
    "label": 3,
    "extract": 6,
    "probe": 7,
    "monitor": 8,
    "held back": 13,
    "random labels": 14,
    "validation": 15,
    "teacher": 16,
    "evaluate": 17,
    "membership/members": 18,
    "membership/heldout": 19,
    "suspects": 20,
    "member labels": 21,
    "divergence/members": 22,
    "divergence/heldout": 23,
}


def streams() -> dict[str, int]:
    """The number of every stream, by its name.

    Raises:
      ValueError: if two streams have one number.
    """
    found = STREAMS | {f"surrogate/{one.name}": one.stream for one in known_classifiers().values()}
    names: dict[int, str] = {}
    for name, number in found.items():
        if names.setdefault(number, name) != name:
            raise ValueError(f"the random streams {names[number]!r} and {name!r} have the same number, {number}")
    return found


def stream_seed(settings: Settings, name: str) -> int:
    """The seed of a stream.

    Raises:
      KeyError: if no stream has that name.
    """
    return int(np.random.SeedSequence([settings.seed, streams()[name]]).generate_state(1)[0])


def stream_key(settings: Settings, name: str) -> jax.Array:
    """The typed key from which a stream's per-sample keys are folded."""
    return jax.random.key(stream_seed(settings, name))
