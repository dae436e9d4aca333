"""Scans a conditional model's labels for those whose images are abnormally alike, and writes what it finds.

It needs the model alone: the stages evaluate and suspects both do it, where evaluate.label_images asks for it.
"""

import csv
import logging
from pathlib import Path

import numpy as np

from side_jax.diffusion import pixel_range
from side_jax.measure.records import AlikeLabel, LabelSpread
from side_jax.measure.target_scores import TargetScores
from side_jax.memorization import label_spread
from side_jax.report import contact_sheet
from side_jax.report.page import pictures
from side_jax.settings import Settings, random_streams
from side_jax.workdir import files

logger = logging.getLogger(__name__)

TABLE, SHEET = "labels.csv", "labels.png"
COLUMNS = ("label", "images", "variance", "spread", "fall", "flagged")
SHOWN, ACROSS = 48, 12  # mean images on the sheet, and in a row of it


def write(settings: Settings, directory: Path, target: TargetScores) -> LabelSpread:
    """Writes labels.csv, a row a label, and labels.png, the mean images of the most alike labels; both in that order.

    Returns:
      The record for results.json.
    """
    count, labels = settings.evaluate.label_images, scanned(settings)
    found, means = [], []
    for images in target.drawn(labels, count):
        found.append(label_spread.spread(pixel_range.to_float(images)))
        means.append(np.round(images.mean(axis=0)).astype(np.uint8))
    spreads = np.asarray([spread for _, spread in found])
    judged = label_spread.judge(spreads)
    order = np.argsort(spreads, kind="stable")
    with files.atomic(directory / TABLE, "w") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for i in order:
            fall = "" if np.isnan(judged.falls[i]) else f"{judged.falls[i]:.6g}"
            flagged = "" if judged.undecided else int(judged.flagged[i])
            table.writerow([labels[i], count, *(f"{value:.9g}" for value in found[i]), fall, flagged])
    sheet = contact_sheet.visible(np.stack([means[i] for i in order[:SHOWN]]))
    if settings.report.private:
        sheet = pictures.blurred(sheet)
    with files.atomic(directory / SHEET) as file:
        file.write(contact_sheet.png(contact_sheet.grid(sheet, ACROSS)))
    alike = [i for i in order if judged.flagged[i]]
    logger.info("labels: %d of %d scanned labels are abnormally alike.", len(alike), len(labels))
    return LabelSpread(
        labels=settings.condition.num_labels,
        scanned=len(labels),
        images=count,
        ordinary=judged.ordinary,
        greatest_fall=None if judged.ordinary is None else float(judged.falls.max()),
        flagged=tuple(
            AlikeLabel(label=int(labels[i]), spread=float(spreads[i]), fall=float(judged.falls[i])) for i in alike
        ),
        undecided=judged.undecided,
    )


def scanned(settings: Settings) -> np.ndarray:
    """The labels to scan, int64 in order: all, or evaluate.max_labels of them, drawn by the seed."""
    labels, most = settings.condition.num_labels, settings.evaluate.max_labels
    if labels <= most:
        return np.arange(labels)
    rng = np.random.default_rng(random_streams.stream_seed(settings, "label spread"))
    return np.sort(rng.choice(labels, most, replace=False))
