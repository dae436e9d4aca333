"""Feature extractors behind one interface: uint8 images in, unit-norm float32 features out."""

from side_jax.features.extractor import Extractor, comparer, embed_all, extract
from side_jax.features.resolve import resolve

__all__ = ["Extractor", "comparer", "embed_all", "extract", "resolve"]
