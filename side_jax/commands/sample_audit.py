"""An audit of images alone: generated ones from any source, against members and held-out images; no model, no config.

Usage: python -m side_jax.evaluate --samples=PATH --members=PATH --heldout=PATH --out=DIR
"""

import csv
import dataclasses
import json
import logging
import math
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from msgspec import structs

from side_jax import __version__, builders
from side_jax.attacks.table import GIVEN
from side_jax.config import default_config, from_config
from side_jax.data.image_sets import FLAGS, ImageSet, ImageSets, read_sets
from side_jax.data.listed import describe
from side_jax.data.sides import Side
from side_jax.devices import compilation_cache, cpu
from side_jax.errors import InputError
from side_jax.features import choose, extractors
from side_jax.features.extractors import Extractor
from side_jax.measure import records
from side_jax.measure.measurement import measure
from side_jax.measure.scoring import Scorer
from side_jax.pipeline import resolve
from side_jax.report import findings, writer
from side_jax.report.writer import Audit
from side_jax.settings import Evaluate, Settings
from side_jax.workdir import files

logger = logging.getLogger(__name__)

NAME = (GIVEN.name, 0.0)  # of the only run
CHUNK = 2**24  # bytes of samples that are compared at a time
SECTIONS = ("evaluate", "label", "report")  # of the config, what acts here, and besides:
SINGLE = ("seed", "data.near_duplicate_rmse", "sampler.batch_size")
LEAST = {"samples": 2, "members": 3, "heldout": 3}  # images, see distribution.summary
RESULTS, UNFINISHED, CACHE = "results.json", ".unfinished", "features"
FILES = (
    *("index.html", RESULTS, "matches.csv", "members.csv", "samples.csv"),
    *("rarefaction.png", "similarity.png", "sensitivity.png", "matches_samples.png"),
)  # whatever a run may leave in its folder, beside CACHE
NUMBERS = "Images are numbered from 0 in the order of their set; samples.csv and members.csv say which is which."
Asked = tuple[flags.FlagValues, Settings, Sequence[str]]  # the flags, what the config says, the command line
HELP = """Audits images alone, from any generator: no model, no config, no checkpoint.

Options:
  --samples=PATH    Generated images: a folder of pictures (at any depth), an NPZ (`images`) or NPY of uint8.
  --members=PATH    Images that the model was trained on.
  --heldout=PATH    Images of the same kind that it never saw: the control. Those that nearly equal a
                    member are dropped.
  --out=DIR         The folder for index.html, results.json, the tables matches.csv, members.csv and samples.csv, and
                    figures. What an earlier audit left there is replaced when this one is finished.
  --size=N          Crops and resizes all to N x N pixels; needed where sizes differ.
  --max_corrupt=N   How many files of each set may be damaged, and are left out (0).
  --title=TEXT      Of the report; a private one shows it, too.
  --config.a.b=X    Overrides one value of evaluate, label (features) or report, such as
                    --config.evaluate.rmse_below=0.1 or --config.report.private=True; side_jax/settings/ lists all.
  --help            Shows this.

Exit code: 0 done, 1 an input can't be used, 2 the command line can't be read."""


def asked(argv: Sequence[str]) -> bool:
    """Whether a command line is for this audit."""
    return any(argument.split("=")[0].replace("--", "-") in ("-samples", "-members", "-heldout") for argument in argv)


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, ml_collections.ConfigDict]:
    """The command line's values and the config; raises what absl and ml_collections raise."""
    values = flags.FlagValues()
    for name in ("samples", "members", "heldout", "out"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    flags.DEFINE_string("title", "Samples", "", flag_values=values)
    flags.DEFINE_integer("size", None, "", flag_values=values)
    flags.DEFINE_integer("max_corrupt", 0, "", lower_bound=0, flag_values=values)
    known = default_config()
    for argument in argv[1:]:
        _check_override(argument.partition("=")[0], known)
    config_flags.DEFINE_config_dict("config", known, flag_values=values, sys_argv=list(argv))
    rest = values(list(argv))[1:]
    if rest:
        raise InputError(f"{rest[0]!r} is no flag; every option begins with --, see --help.")
    for name in ("samples", "members", "heldout", "out"):
        if not getattr(values, name):
            raise InputError(f"--{name}=PATH is missing; --samples, --members, --heldout and --out go together.")
    return values, values.config


def _check_override(option: str, known: ml_collections.ConfigDict) -> None:
    """Raises InputError for one of what isn't there, or what only the audit of a model reads."""
    name, _, key = option.lstrip("-").partition(".")
    section, _, field = key.partition("[")[0].partition(".")
    if name == "config" and section not in SECTIONS and key not in SINGLE:
        acts = ", ".join(f"config.{one}" for one in (*SECTIONS, *SINGLE))
        raise InputError(f"{option} does nothing where images alone are audited; what acts is {acts}.")
    if name == "config" and section in SECTIONS and field not in known[section]:
        raise InputError(f"{option} is no setting; config.{section} has {', '.join(known[section])}.")


def run(values: flags.FlagValues, config: ml_collections.ConfigDict, command: Sequence[str]) -> str:
    """Reads, measures and reports; returns what to print.

    Raises:
      InputError: if an input can't be used; nothing is computed then, and --out is as it was.
    """
    out = files.as_path(values.out)
    settings = _settings(config, out)
    compilation_cache.prepare()
    cpu.prepare([settings.sampler.batch_size])
    _check_out(out, values)
    sets = read_sets(
        *(getattr(values, name) for name in LEAST),
        values.size,
        max_corrupt=values.max_corrupt,
        near_duplicate_rmse=settings.data.near_duplicate_rmse,
    )
    repeats = [one.repeats for one in _sets(sets)]
    sets = dataclasses.replace(sets, members=_different(sets.members), heldout=_different(sets.heldout))
    _check_enough(sets, settings)
    extractor = _extractor(settings, sets.members.images.shape[-1], out) if settings.uses_features else None
    logger.info("%d samples, %d members and %d held-out images are read.", *map(len, _sets(sets)))
    work = out / UNFINISHED
    try:
        results = _write((values, settings, command), sets, repeats, extractor, work)
        _replace(work, out)
    finally:
        work.rmtree(missing_ok=True)
    return findings.in_plain_words(results, settings.evaluate.confidence, out / "index.html")


def _settings(config: ml_collections.ConfigDict, out: Path) -> Settings:
    """Those of the config, whose data, of which it knows nothing, are such that every measure suits them."""
    with config.unlocked():
        config.data.num_members = config.data.num_heldout = 2**40
        config.data.image_size = 2 ** (len(config.model.block_out_channels) + 1) * _side_divisor(config)
    return resolve.resolve_features(from_config(config), out)


def _side_divisor(config: ml_collections.ConfigDict) -> int:
    """A size of images that suits every metric; 1 for a config that can't be used, which is refused later."""
    try:
        metrics = from_config(config.evaluate, Evaluate).make_metrics()
    except InputError:
        return 1
    return math.lcm(*(metric.side_divisor for metric in metrics))


def _sets(sets: ImageSets) -> tuple[ImageSet, ImageSet, ImageSet]:
    return sets.samples, sets.members, sets.heldout


def _check_out(out: Path, values: flags.FlagValues) -> None:
    """Raises InputError where the folder can't be written, lies in a set or holds something else; leaves no trace."""
    where = describe("--out", values.out)
    for flag in FLAGS if files.local(out) else ():
        path = getattr(values, flag[2:])
        real, within = (os.path.realpath(one) for one in (out, path))
        if real == within or (os.path.isdir(within) and os.path.commonpath([real, within]) == within):
            raise InputError(
                f"{where} lies in {describe(flag, path)}, where its figures would count as images; choose another."
            )
    try:
        held = {path.name for path in out.iterdir()} - {CACHE} if out.exists() else set()
        if held and UNFINISHED not in held and not _is_result(out / RESULTS):
            raise InputError(f"{where} holds other files; name a new or an empty folder.")
        new = [path for path in (out, *out.parents) if not path.exists()] if files.local(out) else []
        with files.atomic(out / UNFINISHED / "probe"):
            pass
        (out / UNFINISHED).rmtree()
        for path in new:
            path.rmdir()
    except OSError as error:
        raise InputError(f"{where} can't be written ({error.strerror or error}); choose another.") from None


def _is_result(path: Path) -> bool:
    """Whether an audit of images alone wrote it."""
    try:
        return "sets" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _check_enough(sets: ImageSets, settings: Settings) -> None:
    which = ("", " that differ", " that differ and are no members")
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
    """The first of equal images: copies among the members would blind d1 / d2 and count twice."""
    _, first = np.unique(one.hashes, return_index=True)
    return one if len(first) == len(one) else one.take(np.sort(first))


def _extractor(settings: Settings, channels: int, out: Path) -> Extractor:
    """label.features without a model; raises InputError where that needs one."""
    known = choose.modelless_extractors(settings, channels, out / CACHE)
    if settings.label.features not in known:
        raise InputError(
            f"config.label.features is {settings.label.features!r}, which needs the model; for samples alone choose "
            f"one of {', '.join(known)}."
        )
    return known[settings.label.features]()


def _write(
    asked_for: Asked, sets: ImageSets, repeats: Sequence[int], extractor: Extractor | None, work: Path
) -> records.Results:
    """Measures, writes every file into `work`, and returns the results."""
    values, settings, _ = asked_for
    rng = np.random.default_rng(settings.seed)
    members, heldout = (_side(one, rng) for one in (sets.members, sets.heldout))
    embed = extractors.member_frame(extractor, members.images) if extractor else None
    metrics, e = builders.build_metrics(settings.evaluate), settings.evaluate
    scorer = Scorer(members.images, heldout.images, metrics, e, seed=settings.seed, embed=embed)
    laws, most = embed if e.distribution else None, len(members)
    heldout = heldout.first(most)
    runs = [(NAME, _parts(sets.samples))]
    measured = measure(work, runs, members, heldout, scorer, e, embed=laws, evidence={}, seed=settings.seed)
    results = records.Results(
        **structs.asdict(measured),
        dataset=records.Dataset(
            name=values.title,
            members=len(members),
            heldout=len(sets.heldout),
            heldout_used=scorer.sizes["heldout"],
            image_shape=members.images.shape[1:],
            heldout_equal_dropped=sets.exact_dropped,
            heldout_near_dropped=sets.near_dropped,
        ),
        sets={
            name: records.ImageSet(images=len(one), sha256=one.sha256, damaged=len(one.damaged), repeats=repeated)
            for name, one, repeated in zip(LEAST, _sets(sets), repeats, strict=True)
        },
        versions={"side_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    )
    records.write(work / RESULTS, results)
    with files.atomic(work / "samples.csv", "w") as file:
        one, table = sets.samples, csv.writer(file)
        table.writerow(["index", "name", "sha256"])
        table.writerows(zip(range(len(one)), one.names, one.hashes, strict=True))
    writer.write(_audit(asked_for, results, sets.samples, (members, heldout), work), work)
    return results


def _side(one: ImageSet, rng: np.random.Generator) -> Side:
    """In random order: folders hold one class after the other, but the first images are to stand for all."""
    order = rng.permutation(len(one))
    names, digests = (tuple(of[i] for i in order) for of in (one.names, one.hashes))
    return Side(images=np.asarray(one.images)[order], ids=order, names=names, digests=digests)


def _parts(samples: ImageSet) -> Iterator[dict[str, np.ndarray]]:
    size = max(1, CHUNK // int(np.prod(samples.images.shape[1:])))
    for start in range(0, len(samples), size):
        index = np.arange(start, min(start + size, len(samples)))
        yield {"images": samples.images[index], "index": index, "label": np.full(len(index), -1, np.int32)}


def _replace(work: Path, out: Path) -> None:
    """Puts what is finished in the place of what an earlier run left; RESULTS, which says whose that is, comes last."""
    made = sorted((path.name for path in work.iterdir()), key=lambda name: name == RESULTS)
    for name in set(FILES) - set(made):
        (out / name).unlink(missing_ok=True)
    for name in made:
        (work / name).replace(out / name)


def _audit(
    asked_for: Asked, results: records.Results, samples: ImageSet, sides: tuple[Side, Side], directory: Path
) -> Audit:
    values, settings, command = asked_for
    private = settings.report.private
    shown = {name: value for name, value in dataclasses.asdict(settings).items() if name in SECTIONS}
    shown |= {"seed": settings.seed, "data": {"near_duplicate_rmse": settings.data.near_duplicate_rmse}}
    provenance = [(f"{name}, SHA-256 of all pixels", one.sha256) for name, one in results.sets.items()]
    provenance += [("Settings, SHA-256", files.digest(shown)), *results.versions.items()]
    if not private:
        provenance.append(("Command", shlex.join(["python", "-m", "side_jax.evaluate", *command[1:]])))
    return Audit(
        title=f"{values.title}: how much training data comes out",
        results=results,
        directory=directory,
        members=sides[0],
        heldout=sides[1],
        fetch=lambda _attack, _scale, index: samples.images[index],
        confidence=settings.evaluate.confidence,
        report=settings.report,
        notes=(findings.account(results, settings.data.near_duplicate_rmse), NUMBERS),
        provenance=tuple(provenance),
        config="" if private else json.dumps(shown, indent=2),
    )
