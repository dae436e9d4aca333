"""Stage suspects: which generated images an attacker without the training data would take for copies, best first.

Four kinds of evidence, each computed for the images of a run from the model and from other images of the run alone:

    clique       how many images, itself included, are mutually near duplicates (Carlini et al. 2023, section 4.2)
    variance     how much the image's reconstructions differ from noise to noise: one-step consistency
    score_norm   the norm of the score at the image (Rao et al. 2025)
    confidence   how sure SIDE's classifier is of the image, where there is one

The rank is that of the mean of the four ranks, fixed before any truth was looked at. Only runs that need nothing of the
training data are ranked, each by itself: images of several runs from the same noise are no evidence of memory. Neither
the data nor the split file are read. The owner of the data, who has evaluate/matches.csv, joins it by attack, scale and
index.

One run is in memory at a time: all its images, as uint8, and all its pairs of near duplicates.
"""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from side_jax.devices import placement, process_group
from side_jax.diffusion import pixel_range
from side_jax.measure import target_scores
from side_jax.memorization import cliques
from side_jax.memorization.neighbors import exact_search
from side_jax.models.classifier import log_probs
from side_jax.progress import progress
from side_jax.report import contact_sheet
from side_jax.sampling import shards
from side_jax.settings import Settings
from side_jax.stages import stage_inputs, stage_table
from side_jax.workdir import files, work_units

logger = logging.getLogger(__name__)

SHOWN, ACROSS = 48, 24  # images of each run on the sheet, and in one row of it
COLUMNS = ("rank", "attack", "guidance_scale", "index", "label")
# Of each kind, whether much of it is suspicious; if not, little is.
KINDS = {"clique": True, "variance": False, "score_norm": False, "confidence": True}


def run(settings: Settings, workdir: Path) -> None:
    """Writes suspects/suspects.csv, a row for each image, and suspects/suspects.png, the first of each run."""
    work = stage_table.suspects_unit(settings, workdir)
    if work.begin():
        if process_group.primary():
            _write(settings, workdir, work)
        work.finish()


def _write(settings: Settings, workdir: Path, work: work_units.Unit) -> None:
    target, classify = stage_inputs.load_target_scores(settings, workdir), _confidence(settings, workdir)
    runs, sheet, count = stage_table.blind_units(settings, workdir), [], 0
    with files.atomic(work.directory / "suspects.csv", "w") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *KINDS])
        for run_of, unit in progress(runs, total=len(runs), description="suspects", unit="run"):
            made = shards.read(stage_table.extracted_shards(settings, unit))
            found = target.scores(target_scores.SUSPICION, made["images"], "suspects")
            found |= {"clique": clique_sizes(made["images"], settings.evaluate.rmse_below)}
            if classify:
                found["confidence"] = classify(made["images"])
            rank = ranks(found)
            order = np.argsort(rank)
            for i in order:
                values = [f"{found[kind][i]:.9g}" if kind in found else "" for kind in KINDS]
                table.writerow([rank[i], run_of.attack, run_of.scale, made["index"][i], made["label"][i], *values])
            first = made["images"][order[:SHOWN]]
            blank = [(0, -len(first) % ACROSS), (0, 0), (0, 0), (0, 0)]  # every run begins a row
            sheet.append(np.pad(first, blank, constant_values=255))
            count += len(order)
    with files.atomic(work.directory / "suspects.png") as file:
        file.write(contact_sheet.png(contact_sheet.grid(np.concatenate(sheet), ACROSS)))
    logger.info("suspects: %d images of %d runs in %s.", count, len(runs), work.directory / "suspects.csv")


def clique_sizes(made: np.ndarray, below: float) -> np.ndarray:
    """Of each image uint8 [n, h, w, c], the size of a clique of near duplicates (RMSE below the limit): int64 [n]."""
    pairs, distances = exact_search.pairs_below(made, made, below)
    return cliques.clique_sizes(len(made), pairs, distances)


def ranks(found: dict[str, np.ndarray]) -> np.ndarray:
    """Ranks int64 [n], 1 to n from the most suspicious, by the mean of the images' ranks in each kind [n].

    In a kind, equal values share the mean of their ranks; of equal means, the lower index comes first.
    """
    each = [rankdata(-values if KINDS[kind] else values) for kind, values in found.items()]
    return rankdata(np.mean(each, axis=0), method="ordinal").astype(np.int64)


def _confidence(settings: Settings, workdir: Path) -> Callable[[np.ndarray], np.ndarray] | None:
    """Images uint8 [n, h, w, c] -> the greatest probability that SIDE's classifier gives a class; None without it."""
    surrogate = stage_table.attacker_classifier(settings)
    if surrogate is None:
        return None
    classifier, params = stage_inputs.load_classifier(settings, workdir, surrogate)

    def fn(params: Any, made: jax.Array) -> jax.Array:
        t = jnp.zeros(len(made), jnp.int32)
        return jnp.exp(log_probs(classifier, params["classifier"], pixel_range.to_float(made), t)).max(axis=1)

    compute = placement.in_batches(fn, settings.sampler.batch_size)
    return lambda made: compute(params, made)


def in_plain_words(workdir: Path) -> str:
    """What the command line prints at its end."""
    path = workdir / "suspects" / "suspects.csv"
    return f"Suspects, the most suspicious of each run first: {path}\nPictures: {path.with_suffix('.png')}"
