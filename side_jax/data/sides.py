"""Holds one side of the split, members or held-out images, for measurement and report."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """Members or held-out images.

    Attributes:
      images: uint8 [m, h, w, c].
      ids: int64 [m], ids in tables.
      names: m names for people.
      digests: SHA-256 of each image's pixels, m strings.
      groups: int [m], the identity that each image shows, if the split is by identity; else None.
      shared: bool [m], members that nearly equal an image which was left out of the held-out ones for it; None: none.
    """

    images: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    digests: tuple[str, ...]
    groups: np.ndarray | None = None
    shared: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> "Side":
        """Returns the first `count` images as a Side."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Side(**{name: None if value is None else value[:count] for name, value in values.items()})
