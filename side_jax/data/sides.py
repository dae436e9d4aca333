"""Members or held-out images, as the measure and the report see them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """Members or held-out images.

    Attributes:
      images: uint8 [m, h, w, c].
      ids: int64 [m], what tables call them.
      names: m texts for people.
      digests: m SHA-256 hashes of pixels.
      groups: int [m], whom each shows, where the split is by identity; else None.
    """

    images: np.ndarray
    ids: np.ndarray
    names: tuple[str, ...]
    digests: tuple[str, ...]
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> "Side":
        """The first of them."""
        held = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Side(**{name: None if of is None else of[:count] for name, of in held.items()})
