"""Controls of the metrics: do they find distorted copies of members (positive), and held-out images (negative)?"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from side_jax.measure.records import Control
from side_jax.measure.scoring import Scorer
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.progress import doing


def noised(images: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian noise of the standard deviation `strength`, of pixels in [-1, 1]; the same noise in every call."""
    noise = np.random.default_rng(0).normal(size=images.shape)
    return np.clip(np.round(images + 127.5 * strength * noise), 0, 255).astype(np.uint8)


def cropped(images: np.ndarray, strength: float) -> np.ndarray:
    """The share `strength` of each side is cut off around the centre, and the rest enlarged to the old size."""

    def crop(picture: Image.Image) -> Image.Image:
        w, h = picture.size
        dx, dy = strength * w / 2, strength * h / 2
        return picture.resize((w, h), Image.Resampling.BICUBIC, box=(dx, dy, w - dx, h - dy))

    return _each(images, crop)


def flipped(images: np.ndarray, strength: float) -> np.ndarray:
    """Left and right swapped, where the strength is not 0."""
    return _each(images, ImageOps.mirror) if strength else images


def recompressed(images: np.ndarray, strength: float) -> np.ndarray:
    """Written as JPEG with the quality 100 - `strength`, and read again."""

    def recompress(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=round(100 - strength))
        return Image.open(buffer)

    return _each(images, recompress)


# What each distortion is at a strength, in words.
PHRASES: dict[str, Callable[[float], str]] = {
    "noise": lambda strength: f"noise of standard deviation {strength:g} (of pixels in [-1, 1])",
    "crop": lambda strength: f"{100 * strength:g}% of the width and the height cut off",
    "flip": lambda strength: "mirroring",
    "recompression": lambda strength: f"JPEG of quality {100 - strength:g}",
}
# Each distortion's function, strengths, and unit of the strength.
DISTORTIONS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...], str]] = {
    "noise": (noised, (0.0, 0.02, 0.05, 0.1, 0.2, 0.4), "standard deviation, pixels in [-1, 1]"),
    "crop": (cropped, (0.0, 0.02, 0.05, 0.1, 0.2, 0.4), "share of each side cut off"),
    "flip": (flipped, (0.0, 1.0), "0 or 1"),
    "recompression": (recompressed, (5.0, 10.0, 25.0, 50.0, 75.0, 90.0), "100 minus JPEG's quality"),
}


def _each(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    if images.shape[-1] not in (1, 3):  # a picture has no other number of channels
        return np.concatenate([_each(band, change) for band in np.split(images, images.shape[-1], axis=-1)], axis=-1)
    grey = images.shape[-1] == 1
    changed = [np.asarray(change(Image.fromarray(image.squeeze(-1) if grey else image))) for image in images]
    return np.stack(changed).reshape(images.shape)


@doing("measuring distorted copies")
def sensitivity(scorer: Scorer, members: np.ndarray, heldout: np.ndarray, confidence: float) -> list[Control]:
    """The share of distorted copies matched with their original, and of held-out images matched with any member.

    Args:
      scorer: its first members must be `members`.
      members: uint8 [n, h, w, c], the images to copy.
      heldout: uint8 [k, h, w, c].
      confidence: of Wilson's intervals.

    Returns:
      A record for each distortion, strength, metric and level; the distortion "held-out images" is the negative
      control, with strength None.
    """
    controls = _compare(scorer, heldout, [("held-out images", None, "")], confidence)
    for name, (change, strengths, unit) in DISTORTIONS.items():
        # All strengths at once, so that the members are searched once.
        images = np.concatenate([change(members, strength) for strength in strengths])
        controls += _compare(scorer, images, [(name, strength, unit) for strength in strengths], confidence)
    return controls


def _compare(
    scorer: Scorer, images: np.ndarray, tried: list[tuple[str, float | None, str]], confidence: float
) -> list[Control]:
    """Controls of parts of the images, of equal size, one part for each (distortion, strength, unit)."""
    n, controls = len(images) // len(tried), []
    for metric, level, band, matches in scorer.against_members(images):
        matched = matches.score(band).matched.reshape(len(tried), n)
        itself = matches.nearest.reshape(len(tried), n) == np.arange(n)
        for i, (name, strength, unit) in enumerate(tried):
            hit = matched[i] if strength is None else matched[i] & itself[i]
            controls.append(
                Control(
                    distortion=name,
                    strength=strength,
                    unit=unit,
                    metric=metric,
                    level=level,
                    band=band,
                    images=n,
                    found=float(hit.mean()),
                    found_ci=wilson_interval(int(hit.sum()), n, confidence),
                )
            )
    return controls
