"""Audits from Python: what the commands do, with a result object. `import side_jax` offers all of it."""

import dataclasses
import html
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from side_jax.commands import model_audit, sample_audit
from side_jax.config import load_config, to_config, with_overrides
from side_jax.data.listed import ImageSource
from side_jax.devices import cpu
from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.pipeline import audit as pipeline
from side_jax.pipeline import budget as budgets
from side_jax.pipeline import saved_config
from side_jax.pipeline.resolve import resolve, with_object
from side_jax.report import findings, matches, phrases
from side_jax.report.verdict import verdict as verdict_of
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.targets.target_model import Target
from side_jax.workdir import files

logger = logging.getLogger(__name__)

Config = str | Path | ml_collections.ConfigDict | Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; a notebook shows its page.

    Attributes:
      verdict: "Leaks", "No leak found" or "Not decided"; "" as long as the stage evaluate has not run.
      sentences: the verdict's reasons and the findings, in plain words.
      records: the rows of results.json: one for each attack, guidance scale, metric and band. Rates are fractions in
        [0, 1]; the JSON schema of results.json explains every field.
      report: the page for people, index.html.
      results: results.json, with all figures.
      matches: matches.csv, with one row for each generated image.
      members: members.csv, with one row for each member and held-out image.
    """

    verdict: str
    sentences: tuple[str, ...] = dataclasses.field(repr=False)
    records: tuple[dict[str, Any], ...] = dataclasses.field(repr=False)
    report: Path
    results: Path
    matches: Path
    members: Path

    @property
    def rows(self) -> Any:
        """The records as a pandas DataFrame where pandas is installed, and as they are elsewhere."""
        try:
            import pandas
        except ImportError:
            return self.records
        return pandas.DataFrame(list(self.records))

    def gallery(self) -> Image.Image:
        """The sheet of the strongest attack's matches: generated image, nearest member, nearest held-out image.

        Raises:
          InputError: if the audit has no report yet, or a private one, which has no such sheet.
        """
        best = matches.shown(phrases.headline(records.read(self.results))) if self.records else []
        path = self.report.with_name(f"matches_{best[0].key.name}.png") if best else self.report
        if not best or not path.is_file():
            raise InputError(
                f"{self.report.parent} holds no sheet of matches; run all stages, with report.private off."
            )
        with path.open("rb") as file:
            picture = Image.open(file)
            picture.load()
        return picture

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        if not self.report.is_file():
            return html.escape(repr(self))
        page = html.escape(self.report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" width="100%" height="800"></iframe>'


def audit(
    target: str | Path | Target,
    members: ImageSource,
    heldout: ImageSource,
    workdir: str | Path | None = None,
    *,
    attacks: Sequence[str] = (),
    budget: str | float = model_audit.DEFAULT_BUDGET,
    overrides: Mapping[str, Any] | None = None,
) -> AuditResult:
    """Audits a model, as `side-jax audit` does: with the settings that fit into a given time on this machine.

    The log says which settings were chosen. A second call with the same arguments continues where the first one
    stopped; if everything is done, it only reads the results. Progress goes to the logger "side_jax".

    Args:
      target: the model: a local checkpoint of a format in docs/your_model.md, hf://OWNER/NAME, or a Python object, see
        side_jax.targets.from_torch and from_function.
      members: the images that it was trained on: a path, or an array uint8 [n, h, w] or [n, h, w, c] in 0..255, which
        is kept in the workdir.
      heldout: images of the same kind that it has never seen: the control. Likewise.
      workdir: folder for everything that the run writes; None: runs/NAME, by the name of the model.
      attacks: to run, by their names in docs/attacks.md; (): those that the time allows.
      budget: the time that the audit may take, such as "10min" or "2h", or a number of seconds.
      overrides: settings that are not to be chosen, such as {"extract.num_images": 1024}.

    Raises:
      InputError: if anything can't work, in a sentence that names the value and the fix; also if the budget is too
        small for the smallest audit of this model.

    Example:
      >>> import numpy as np
      >>> import side_jax
      >>> members, heldout = np.random.default_rng(0).integers(0, 256, (2, 40, 8, 8, 1), np.uint8)
      >>> few = {"extract.num_images": 32, "evaluate.divergence": False, "evaluate.controls": False}
      >>> result = side_jax.audit("model", members, heldout, "runs/mine", budget="2min", overrides=few)
      >>> result.verdict
      'Not decided'
      >>> len({row["attack"] for row in result.records})
      2
    """
    overrides, started = dict(overrides or {}), time.monotonic()
    is_object = isinstance(target, Target)
    name = target.origin.name if is_object else os.path.expanduser(os.fspath(target))
    folder = files.as_path(workdir) if workdir else model_audit.default_workdir(name)
    names = {setting: option.lstrip("-") for setting, option in model_audit.OPTIONS.items()}
    with model_audit.spoken(names | {"model": "target"}):
        allowed = budgets.seconds(budget)
        sides = {"members": members, "heldout": heldout}
        if overrides.get("report.private") and any(isinstance(images, np.ndarray) for images in sides.values()):
            raise InputError("an array would be kept in the workdir, which report.private forbids; give paths.")
        if is_object:
            cpu.use_one()
        config = model_audit.start(name, *(model_audit.kept(images, folder, side) for side, images in sides.items()))
        request = model_audit.Request(
            config=with_overrides(config, overrides),
            workdir=folder,
            budget=allowed,
            given=frozenset(overrides),
            attacks=(attacks,) if isinstance(attacks, str) else tuple(attacks),
            target=target if is_object else None,
            started=started,
        )
        return _finished(model_audit.run(request), folder)


def audit_config(
    config: Config | None, workdir: str | Path, stages: Sequence[str] | None = None, *, target: Target | None = None
) -> AuditResult:
    """Audits a model by a config, as `side-jax --config=...` does: trains or reads it, attacks it, and measures.

    A second call with the same arguments continues where the first one stopped; if everything is done, it only reads
    the results. Progress goes to the logger "side_jax", and to a terminal. To share a run between processes, use the
    command line.

    Args:
      config: the name of a packaged config ("digits", "celeba:64"), the path of a config file, a ConfigDict such as
        load_config returns, or Settings; None: the config saved in the workdir.
      workdir: folder for everything that the run writes; created if needed.
      stages: the stages to run; None: all stages of an audit.
      target: a model that is a Python object, see side_jax.targets.from_torch and from_function, in place of one that
        the config names or trains. What needs its derivatives, such as the likelihood, is left out or refused.

    Raises:
      InputError: if anything can't work, in a sentence that names the value and the fix. All checks come before the
        first heavy step.

    Example:
      >>> import side_jax
      >>> result = side_jax.audit_config("smoke", "runs/smoke")
      >>> result.verdict
      'Not decided'
      >>> print(result.report)
      runs/smoke/report/index.html
      >>> sorted({row["metric"] for row in result.records})
      ['distance_ratio', 'normalized_l2', 'rmse']
    """
    folder = files.as_path(workdir)
    if target is not None:
        cpu.use_one()
    given = _config(config, folder)
    settings = resolve(given if target is None else with_object(given, target), folder)
    pipeline.run(settings, folder, stages)
    return _finished(settings, folder)


def _finished(settings: Settings, folder: Path) -> AuditResult:
    """The result of a run in a workdir."""
    evaluated = stage_table.evaluation_unit(settings, folder).done()
    results = records.read(folder / "evaluate" / "results.json") if evaluated else None
    report = folder / "report" / "index.html"
    return _result(results, settings.evaluate.confidence, folder / "evaluate", report)


def audit_samples(
    samples: ImageSource,
    members: ImageSource,
    heldout: ImageSource,
    out: str | Path = "runs/samples",
    *,
    size: int | None = None,
    title: str = "Samples",
    max_corrupt: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> AuditResult:
    """Audits generated images from any source, without a model, as `side-jax-evaluate --samples=...` does.

    Each set is a path (a folder of pictures at any depth, an NPZ with `images`, or an NPY) or an array, uint8 [n, h, w]
    or [n, h, w, c] in 0..255, where c is 1 (grey), 3 (colour) or at most 16.

    Args:
      samples: the generated images.
      members: the images that the model was trained on.
      heldout: images of the same kind that the model has never seen: the control.
      out: folder for the results, which replace those of an earlier audit.
      size: height and width in pixels to which all images are cropped and resized; needed if their sizes differ.
      title: of the report.
      max_corrupt: number of damaged files that are left out of each set; one more is an error.
      overrides: settings of evaluate, label (the features) or report, such as {"evaluate.rmse_below": 0.1}.

    Raises:
      InputError: if an input can't be used; then nothing is computed, and `out` is left as it was.

    Example:
      >>> import numpy as np
      >>> import side_jax
      >>> members, heldout, other = np.random.default_rng(0).integers(0, 256, (3, 40, 8, 8, 1), np.uint8)
      >>> copies = members[:20]
      >>> result = side_jax.audit_samples(np.concatenate([copies, other]), members, heldout, "runs/samples")
      >>> result.verdict
      'Leaks'
      >>> result.records[0]["ams"], result.records[0]["heldout_ams"]
      (0.3333333333333333, 0.0)
    """
    arguments = {"samples": samples, "members": members, "heldout": heldout, "out": out}
    arguments |= {"size": size, "title": title, "max_corrupt": max_corrupt, "overrides": dict(overrides or {})}
    request = sample_audit.Request(
        samples=samples,
        members=members,
        heldout=heldout,
        out=files.as_path(out),
        config=sample_audit.override(overrides or {}),
        size=size,
        title=title,
        max_corrupt=max_corrupt,
        command=f"side_jax.audit_samples({', '.join(f'{k}={_shown(v)}' for k, v in arguments.items())})",
    )
    results = sample_audit.run(request)
    folder = request.out
    return _result(results, request.config.evaluate.confidence, folder, folder / sample_audit.PAGE)


def _config(config: Config | None, workdir: Path) -> ml_collections.ConfigDict:
    if config is None:
        return saved_config.saved_config(workdir)
    if isinstance(config, Settings):
        return to_config(config)
    return load_config(config) if isinstance(config, (str, Path)) else config


def _shown(value: Any) -> str:
    """An argument in the report."""
    if isinstance(value, np.ndarray):
        return f"<array of shape {value.shape}>"
    return repr(os.fspath(value) if isinstance(value, os.PathLike) else value)


def _result(results: records.Results | None, confidence: float, folder: Path, report: Path) -> AuditResult:
    """The result: what results.json says, if there is one, and where the files are."""
    verdict, sentences = "", ()
    if results:
        verdict, _, reasons = verdict_of(results, confidence)
        sentences = (*reasons, *findings.sentences(results, confidence))
    report, folder = (Path(path) if files.local(path) else path for path in (report, folder))
    return AuditResult(
        verdict=verdict,
        sentences=sentences,
        records=tuple(files.read_json(folder / "results.json")["rows"]) if results else (),
        report=report,
        results=folder / "results.json",
        matches=folder / "matches.csv",
        members=folder / "members.csv",
    )
