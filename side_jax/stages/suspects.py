"""Stage suspects: ranks generated images by evidence of copying that needs no training data.

Four scores, computed for the images of a run from the model and the other images of that run alone:

    clique       size of a clique of mutual near duplicates that contains the image (Carlini et al. 2023, section 4.2)
    variance     variance of the image's one-step reconstructions over noise (one-step consistency)
    score_norm   norm of the score at the image (Rao et al. 2025)
    confidence   confidence of SIDE's classifier, if there is one

Images are ranked by the mean of their ranks in each score, a rule fixed before any ground truth was examined. Only runs
that need no training data are ranked, each separately, since images of several runs from the same noise are no evidence
of memorisation. Nor are those of a search over starting noise, whose children have that of their parents: it has no
cliques, and the sizes of groups of modes that start from its images prove less. Neither the data nor the split file is
read. The owner of the data can join evaluate/matches.csv by attack, scale and index.

A run of mode seeking is also listed by its distinct modes, in modes.csv: groups of near duplicates among its images,
largest first, since modes that many starts reach are those of memorised images; their centres, with the number and
share of the images that came there and, at the first of modes.noise_levels, two scores:

    movement             root mean square of what one more round would change; near 0 at a mode
    posterior_variance   mean over pixels of the variance of the clean image given the noisy one; near 0 if memorised

One run is in memory at a time: its uint8 images and its pairs of near duplicates.
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

from side_jax.attacks.table import NOISE, Run
from side_jax.devices import placement, process_group
from side_jax.diffusion import pixel_range
from side_jax.measure import target_scores
from side_jax.measure.target_scores import TargetScores
from side_jax.memorization import basins, cliques
from side_jax.memorization.basins import Basins
from side_jax.memorization.neighbors import exact_search
from side_jax.models.classifier import log_probs
from side_jax.progress import progress
from side_jax.report import contact_sheet
from side_jax.sampling import shards
from side_jax.settings import Settings
from side_jax.stages import label_scan, stage_inputs, stage_table
from side_jax.workdir import files, work_units
from side_jax.workdir.work_units import Unit

logger = logging.getLogger(__name__)

SHOWN, ACROSS = 48, 24  # images per run on the contact sheet, and images per row
COLUMNS = ("rank", "run", "attack", "guidance_scale", "index", "label")
MODE_COLUMNS = ("rank", "run", "index", "images", "share", *target_scores.MODES)
# Whether high values of a score are suspicious; otherwise low values are: of images, and of distinct modes.
KINDS = {"clique": True, "variance": False, "score_norm": False, "confidence": True}
MODE_KINDS = {"images": True} | dict.fromkeys(target_scores.MODES, False)


def run(settings: Settings, workdir: Path) -> None:
    """Writes suspects/suspects.csv, one row per image, and suspects/suspects.png, the top images of each run.

    With runs of mode seeking, also suspects/modes.csv, one row per distinct mode, and suspects/modes.png. With
    evaluate.label_images, also suspects/labels.csv, one row per label of the model, and suspects/labels.png.
    """
    work = stage_table.suspects_unit(settings, workdir)
    if work.begin():
        sought = [(run, unit) for run, unit in stage_table.data_free_units(settings, workdir) if run.rounds]
        if process_group.primary():
            target = stage_inputs.load_target_scores(settings, workdir)
            _write(settings, workdir, work, target)
            if sought:
                _write_modes(settings, workdir, work, sought, target)
            if settings.evaluate.label_images:
                label_scan.write(settings, work.directory, target)
        work.finish(has_modes=bool(sought), has_labels=bool(settings.evaluate.label_images))


def _write(settings: Settings, workdir: Path, work: work_units.Unit, target: TargetScores) -> None:
    classify = _confidence(settings, workdir)
    runs, sheet, count = stage_table.data_free_units(settings, workdir), [], 0
    with files.atomic(work.directory / "suspects.csv", "w") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS, *KINDS])
        for attack_run, unit in progress(runs, total=len(runs), description="suspects", unit="run"):
            generated = shards.read(stage_table.extracted_shards(settings, unit))
            scores = target.scores(target_scores.SUSPICION, generated["images"], "suspects")
            if not _inherits(settings, attack_run):
                scores |= {"clique": clique_sizes(generated["images"], settings.evaluate.rmse_below)}
            if classify:
                scores["confidence"] = classify(generated["images"])
            rank = ranks(scores)
            order = np.argsort(rank)
            for i in order:
                values = [f"{scores[kind][i]:.9g}" if kind in scores else "" for kind in KINDS]
                table.writerow(
                    [
                        rank[i],
                        attack_run.name,
                        attack_run.attack,
                        attack_run.scale,
                        generated["index"][i],
                        generated["label"][i],
                        *values,
                    ]
                )
            sheet.append(generated["images"][order[:SHOWN]])
            count += len(order)
    _write_sheet(work.directory / "suspects.png", sheet)
    logger.info("suspects: %d images of %d runs in %s.", count, len(runs), work.directory / "suspects.csv")


def _inherits(settings: Settings, run: Run) -> bool:
    """Whether a run's images, or those that it starts from, have starting noise of other images of the run."""
    return run.searched and settings.search_genome == NOISE


def _write_modes(
    settings: Settings, workdir: Path, work: work_units.Unit, runs: list[tuple[Run, Unit]], target: TargetScores
) -> None:
    sheet = []
    sigma = settings.modes.noise_levels[0] * stage_inputs.training_spread(settings, workdir)
    with files.atomic(work.directory / "modes.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(MODE_COLUMNS)
        for run, unit in progress(runs, total=len(runs), description="distinct modes", unit="run"):
            generated = shards.read(stage_table.extracted_shards(settings, unit))
            images = generated["images"]
            modes = distinct_modes(images, settings.evaluate.rmse_below)
            own = generated["index"][modes.centre]
            scores = target.scores(target_scores.MODES, images[modes.centre], "suspects", sigma, own)
            for i, (centre, size) in enumerate(zip(modes.centre, modes.size, strict=True)):
                values = [f"{scores[kind][i]:.9g}" for kind in target_scores.MODES]
                share = f"{size / len(images):.6g}"
                table.writerow([i + 1, run.name, generated["index"][centre], size, share, *values])
            sheet.append(images[modes.centre[:SHOWN]])
            logger.info("suspects: %s came to %d distinct modes.", run.name, len(modes.size))
    _write_sheet(work.directory / "modes.png", sheet)


def _write_sheet(path: Path, parts: list[np.ndarray]) -> None:
    """Writes images uint8 [n, h, w, c] of several runs as a picture, where every run begins a new row."""
    blank = ((0, 0), (0, 0), (0, 0))
    padded = [np.pad(part, ((0, -len(part) % ACROSS), *blank), constant_values=255) for part in parts]
    with files.atomic(path) as file:
        file.write(contact_sheet.png(contact_sheet.grid(np.concatenate(padded), ACROSS)))


def clique_sizes(images: np.ndarray, below: float) -> np.ndarray:
    """The size of a clique of near duplicates (RMSE < below) around each uint8 image [n, h, w, c]: int64 [n]."""
    pairs, distances = exact_search.pairs_below(images, images, below)
    return cliques.clique_sizes(len(images), pairs, distances)


def distinct_modes(images: np.ndarray, below: float) -> Basins:
    """The distinct modes among uint8 images [n, h, w, c]: groups of near duplicates (RMSE < below)."""
    pairs, _ = exact_search.pairs_below(images, images, below)
    return basins.basins(len(images), pairs)


def ranks(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Ranks int64 [n], 1 for the most suspicious image, by the mean of the ranks in each score [n].

    Within a score, equal values share their mean rank; among equal means, the lower index comes first.
    """
    each = [rankdata(-values if KINDS[kind] else values) for kind, values in scores.items()]
    return rankdata(np.mean(each, axis=0), method="ordinal").astype(np.int64)


def _confidence(settings: Settings, workdir: Path) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function: images uint8 [n, h, w, c] -> maximal class probability of SIDE's classifier; None without it."""
    surrogate = stage_table.attacker_classifier(settings)
    if surrogate is None:
        return None
    classifier, params = stage_inputs.load_classifier(settings, workdir, surrogate)

    def fn(params: Any, images: jax.Array) -> jax.Array:
        t = jnp.zeros(len(images), jnp.int32)
        return jnp.exp(log_probs(classifier, params["classifier"], pixel_range.to_float(images), t)).max(axis=1)

    compute = placement.in_batches(fn, settings.sampler.batch_size)
    return lambda images: compute(params, stage_inputs.sampled(settings, workdir, images))


def summary_text(workdir: Path) -> str:
    """The summary that the command line prints at the end."""
    path = workdir / "suspects" / "suspects.csv"
    text = f"Suspects, the most suspicious of each run first: {path}\nPictures: {path.with_suffix('.png')}"
    modes = path.with_name("modes.csv")
    if modes.exists():
        text += f"\nDistinct modes, the most frequent first: {modes}\nPictures: {modes.with_suffix('.png')}"
    labels = path.with_name(label_scan.TABLE)
    if labels.exists():
        text += f"\nLabels of the model, the most alike first: {labels}\nMean images: {labels.with_suffix('.png')}"
    return text
