"""The samples-only audit: generated images from any source against members and held-out images, without a model."""

import csv
import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from msgspec import structs

from side_jax.attacks.table import GIVEN
from side_jax.commands import out_folder
from side_jax.config import default_config, from_config, with_overrides
from side_jax.data.decode import rules
from side_jax.data.image_sets import FLAGS, ImageSet, ImageSets, read_sets
from side_jax.data.listed import ImageSource, describe, location
from side_jax.data.sides import Side
from side_jax.data.sources import hub_files
from side_jax.devices import compilation_cache, cpu
from side_jax.errors import InputError
from side_jax.features import choose, extractors
from side_jax.features.extractors import Extractor
from side_jax.hub import repository
from side_jax.measure import records
from side_jax.measure.measurement import measure
from side_jax.measure.scoring import Scorer
from side_jax.pipeline import resolve
from side_jax.report import findings, one_page, writer
from side_jax.report.writer import Audit
from side_jax.settings import Evaluate, Settings
from side_jax.workdir import files

logger = logging.getLogger(__name__)

RUN = records.Run(attack=GIVEN.name, guidance_scale=0.0)  # the only one
CHUNK = 2**24  # bytes of samples that are compared at a time
SECTIONS = ("evaluate", "label", "report")  # config sections that apply here, plus these keys:
DATA = ("near_duplicate_rmse", "fit", "orientation", "bit_range")
SINGLE = ("seed", "sampler.batch_size", *(f"data.{name}" for name in DATA))
LEAST = {"samples": 2, "members": 3, "heldout": 3}  # images, see distribution.summary
PAGE, RESULTS, CACHE = "index.html", "results.json", "features"
FILES = (
    *(PAGE, one_page.NAME, RESULTS, "matches.csv", "members.csv", "samples.csv"),
    *("opening.svg", "rarefaction.svg", "similarity.svg", "sensitivity.svg", "matches_samples.png"),
)  # every file that a run may leave in its folder, beside CACHE
NUMBERS = "Images are numbered from 0 in the order of their set; samples.csv and members.csv list them."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare, and where to write the results.

    Attributes:
      samples: the generated images: a path, or uint8 [n, h, w] or [n, h, w, c].
      members: the images that the model was trained on, likewise.
      heldout: images of the same kind that it has not seen, likewise.
      out: folder of the results.
      config: from default_config(), with overrides that check_override accepts.
      size: height and width to which all images are cropped and resized, in pixels; None: they have one size.
      title: of the report.
      max_corrupt: number of damaged files that are left out of each set; one more is an error.
      command: what started the audit, for the report.
    """

    samples: ImageSource
    members: ImageSource
    heldout: ImageSource
    out: Path
    config: ml_collections.ConfigDict
    size: int | None = None
    title: str = "Samples"
    max_corrupt: int = 0
    command: str = ""

    @property
    def sources(self) -> tuple[ImageSource, ImageSource, ImageSource]:
        """The three sets, in the order of FLAGS."""
        return self.samples, self.members, self.heldout


def check_override(key: str, label: str) -> None:
    """Checks that a setting exists and applies to a samples-only audit.

    Args:
      key: of the setting, such as "evaluate.rmse_below".
      label: what messages call it, such as "--config.evaluate.rmse_below".

    Raises:
      InputError: if it does not.
    """
    known = default_config()
    section, _, field = key.partition("[")[0].partition(".")
    if section not in SECTIONS and key not in SINGLE:
        listed = ", ".join(f"config.{one}" for one in (*SECTIONS, *SINGLE))
        raise InputError(f"{label} has no effect on a samples-only audit, to which {listed} apply.")
    if section in SECTIONS and field not in known[section]:
        raise InputError(f"{label} is not a setting; config.{section} has {', '.join(known[section])}.")


def override(overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the default config with overrides, such as {"evaluate.rmse_below": 0.1}.

    Raises:
      InputError: if a key is not a setting that applies here.
    """
    for key in overrides:
        check_override(key, f"overrides[{key!r}]")
    return with_overrides(default_config(), overrides)


def run(request: Request) -> records.Results:
    """Reads the images, measures, writes all files into request.out, and returns the results.

    Raises:
      InputError: if an input can't be used; then nothing is computed, and request.out is left as it was.
    """
    out = request.out
    settings = _settings(request)
    compilation_cache.prepare()
    cpu.prepare([settings.sampler.batch_size])
    _check_out(request)
    sets = read_sets(
        *request.sources,
        request.size,
        max_corrupt=request.max_corrupt,
        near_duplicate_rmse=settings.data.near_duplicate_rmse,
        rules=rules(settings.data),
        private=settings.report.private,
    )
    repeats = [one.repeats for one in _sets(sets)]
    sets = dataclasses.replace(sets, members=_different(sets.members), heldout=_different(sets.heldout))
    _check_enough(sets, settings)
    extractor = _extractor(settings, sets.members.images.shape[-1], out) if settings.uses_features else None
    logger.info("read %d samples, %d members and %d held-out images.", *map(len, _sets(sets)))
    with out_folder.replaced(out, FILES, RESULTS) as work:
        return _write(request, settings, sets, repeats, extractor, work)


def _settings(request: Request) -> Settings:
    """The settings. Those of the data, which is unknown here, are chosen so that they allow every metric."""
    config = request.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_members = config.data.num_heldout = 0
        config.data.image_size = 2 ** (len(config.model.block_out_channels) + 1) * _side_divisor(config)
    return resolve.resolve_features(from_config(config), request.out)


def _side_divisor(config: ml_collections.ConfigDict) -> int:
    """A size of images that suits every metric; 1 for a config that can't be used, which is refused later."""
    try:
        metrics = from_config(config.evaluate, Evaluate).make_metrics()
    except InputError:
        return 1
    return math.lcm(*(metric.side_divisor for metric in metrics))


def _sets(sets: ImageSets) -> tuple[ImageSet, ImageSet, ImageSet]:
    return sets.samples, sets.members, sets.heldout


def _check_out(request: Request) -> None:
    """Raises InputError if the folder can't be written, lies in a set or holds something else; leaves no trace."""
    paths = zip(FLAGS, request.sources, strict=True)
    inputs = [(describe(flag, path), location(path)) for flag, path in paths if not isinstance(path, np.ndarray)]
    out_folder.check(
        request.out,
        inputs,
        "where its figures would count as images",
        mark=(RESULTS, "sets"),
        beside=(CACHE,),
    )


def _check_enough(sets: ImageSets, settings: Settings) -> None:
    which = ("", " that differ", " that differ and are not members")
    metrics = settings.evaluate.make_metrics()
    for flag, one, kind, least in zip(FLAGS, _sets(sets), which, LEAST.values(), strict=True):
        held = f"{describe(flag, one.path)} has {len(one)} image{'' if len(one) == 1 else 's'}{kind}"
        if len(one) < least:
            raise InputError(f"{held}, but at least {least} are needed; give more.")
        for metric in metrics if flag != FLAGS[0] else ():
            missing = metric.references_needed - len(one)
            if missing > 0 and not metric.references_setting:
                raise InputError(f"{held}, but the metric {metric.name} needs {metric.references_needed}; give more.")
            if missing > 0:
                key = f"config.evaluate.{metric.name}_{metric.references_setting}"
                value = getattr(metric, metric.references_setting)
                raise InputError(
                    f"{held}, but {key} = {value} needs {metric.references_needed}; give more, or "
                    f"--{key}={value - missing}."
                )
    height, width = sets.members.images.shape[1:3]
    for metric in metrics:
        if height % metric.side_divisor or width % metric.side_divisor:
            raise InputError(
                f"config.evaluate.{metric.name}_{metric.side_setting} is {metric.side_divisor}, which does not divide "
                f"images of {width} x {height} pixels; choose a divisor, or give --size."
            )


def _different(one: ImageSet) -> ImageSet:
    """Keeps the first of equal images: copies among the members would count twice and make d1 / d2 useless."""
    _, first = np.unique(one.hashes, return_index=True)
    return one if len(first) == len(one) else one.take(np.sort(first))


def _extractor(settings: Settings, channels: int, out: Path) -> Extractor:
    """The extractor of label.features; raises InputError if that needs a model."""
    known = choose.modelless_extractors(settings, channels, out / CACHE)
    if settings.label.features not in known:
        raise InputError(
            f"config.label.features is {settings.label.features!r}, which needs the model; for a samples-only audit "
            f"choose one of {', '.join(known)}."
        )
    return known[settings.label.features]()


def _write(
    request: Request,
    settings: Settings,
    sets: ImageSets,
    repeats: Sequence[int],
    extractor: Extractor | None,
    work: Path,
) -> records.Results:
    """Measures, writes every file into `work`, and returns the results."""
    rng = np.random.default_rng(settings.seed)
    if settings.report.private:
        unnamed = {name: _unnamed(getattr(sets, name)) for name in LEAST}
        sets = dataclasses.replace(sets, **unnamed)
    members, heldout = (_side(one, rng) for one in (sets.members, sets.heldout))
    embed = extractors.member_frame(extractor, members.images) if extractor else None
    metrics, e = settings.evaluate.make_metrics(), settings.evaluate
    members = dataclasses.replace(members, shared=np.isin(members.digests, list(sets.shared)))
    scorer = Scorer(members.images, heldout.images, metrics, e, seed=settings.seed, embed=embed, shared=members.shared)
    laws, most = embed if e.distribution else None, len(members)
    heldout = heldout.first(most)
    runs = [(RUN, _parts(sets.samples))]
    measured = measure(work, runs, members, heldout, scorer, e, embed=laws, evidence={}, seed=settings.seed)
    results = records.Results(
        **structs.asdict(measured),
        dataset=records.Dataset(
            name=request.title,
            members=len(members),
            heldout=len(sets.heldout),
            heldout_used=scorer.sizes["heldout"],
            members_untested=int(members.shared.sum()),
            member_near_pairs=sets.member_pairs,
            image_shape=members.images.shape[1:],
            heldout_equal_dropped=sets.exact_dropped,
            heldout_near_dropped=sets.near_dropped,
        ),
        sets={
            name: records.ImageSet(
                images=len(one),
                sha256=one.sha256,
                commit=_commit(one.path),
                damaged=len(one.damaged),
                repeats=repeated,
                colour=one.colour,
                reading=records.Reading(**one.reading),
            )
            for name, one, repeated in zip(LEAST, _sets(sets), repeats, strict=True)
        },
        versions=records.versions(),
    )
    records.write(work / RESULTS, results)
    with files.atomic(work / "samples.csv", "w") as file:
        one, table = sets.samples, csv.writer(file)
        table.writerow(["index", "name", "sha256"])
        table.writerows(zip(range(len(one)), one.names, one.hashes, strict=True))
    writer.write(_audit(request, settings, results, sets.samples, (members, heldout), work), work)
    return results


def _commit(path: str) -> str:
    """The commit that the images of an id of the hub are of; "" for other images."""
    return hub_files(path, "").commit if repository.is_id(path) else ""


def _unnamed(one: ImageSet) -> ImageSet:
    """A set whose images have no names, for tables that name no file."""
    return dataclasses.replace(one, names=("",) * len(one))


def _side(one: ImageSet, rng: np.random.Generator) -> Side:
    """The images in random order: folders hold one class after the other, but the first images must represent all."""
    order = rng.permutation(len(one))
    names, digests = (tuple(of[i] for i in order) for of in (one.names, one.hashes))
    return Side(images=np.asarray(one.images)[order], ids=order, names=names, digests=digests)


def _parts(samples: ImageSet) -> Iterator[dict[str, np.ndarray]]:
    size = max(1, CHUNK // int(np.prod(samples.images.shape[1:])))
    for start in range(0, len(samples), size):
        index = np.arange(start, min(start + size, len(samples)))
        yield {"images": samples.images[index], "index": index, "label": np.full(len(index), -1, np.int32)}


def _audit(
    request: Request,
    settings: Settings,
    results: records.Results,
    samples: ImageSet,
    sides: tuple[Side, Side],
    directory: Path,
) -> Audit:
    private = settings.report.private
    shown = {name: value for name, value in dataclasses.asdict(settings).items() if name in SECTIONS}
    shown |= {"seed": settings.seed, "data": {name: getattr(settings.data, name) for name in DATA}}
    provenance = [(f"{name}, SHA-256 of all pixels", one.sha256) for name, one in results.sets.items()]
    provenance += [(f"{name}, commit", one.commit) for name, one in results.sets.items() if one.commit]
    provenance += [("Settings, SHA-256", files.digest(shown)), *results.versions.items()]
    if not private:
        provenance.append(("Command", request.command))
    return Audit(
        title=f"{request.title}: how much training data comes out",
        results=results,
        directory=directory,
        members=sides[0],
        heldout=sides[1],
        fetch=lambda _, index: samples.images[index],
        confidence=settings.evaluate.confidence,
        report=settings.report,
        notes=(findings.account(results, settings.data.near_duplicate_rmse), NUMBERS),
        provenance=tuple(provenance),
        config="" if private else json.dumps(shown, indent=2),
        facts=(("Model", "not asked: its images alone were compared"),),
    )
