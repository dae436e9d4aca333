"""Named random streams: each has its own seed, derived from config.seed and a fixed number.

A new stream takes an unused number, so that it changes no existing image.
"""

import jax
import numpy as np

from side_jax.attacks.table import known_classifiers
from side_jax.settings import Settings

# The classifiers' numbers (4, 5, 9 to 12, 27) are in attacks/table.py.
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
    "train/twin": 24,
    "surrogate/weak": 25,
    "search": 28,
    "surrogate/side_lora": 26,
    "label spread": 29,
    "requests": 30,
}


def streams() -> dict[str, int]:
    """The number of every stream, by name.

    Raises:
      ValueError: if two streams have the same number.
    """
    numbers = STREAMS | {f"surrogate/{one.name}": one.stream for one in known_classifiers().values()}
    names: dict[int, str] = {}
    for name, number in numbers.items():
        if names.setdefault(number, name) != name:
            raise ValueError(f"the random streams {names[number]!r} and {name!r} have the same number, {number}")
    return numbers


def stream_seed(settings: Settings, name: str) -> int:
    """The integer seed of a stream.

    Raises:
      KeyError: if no stream has that name.
    """
    return int(np.random.SeedSequence([settings.seed, streams()[name]]).generate_state(1)[0])


def stream_key(settings: Settings, name: str) -> jax.Array:
    """The typed base key of a stream, into which sample indices are folded."""
    return jax.random.key(stream_seed(settings, name))
