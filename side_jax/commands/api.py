"""Audits from Python: what the commands do, with a result object. `import side_jax` offers all of it."""

import dataclasses
import html
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from side_jax.commands import sample_audit
from side_jax.config import load_config, to_config
from side_jax.data.listed import ImageSource
from side_jax.devices import cpu
from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.pipeline import audit as pipeline
from side_jax.pipeline import saved_config
from side_jax.pipeline.resolve import resolve, with_target
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
      rows: the rows of results.json: one for each attack, guidance scale, metric and band. Rates are fractions in
        [0, 1]; the JSON schema of results.json explains every field.
      report: the page for people, index.html.
      results: results.json, with all figures.
      matches: matches.csv, with one row for each generated image.
      members: members.csv, with one row for each member and held-out image.
    """

    verdict: str
    sentences: tuple[str, ...] = dataclasses.field(repr=False)
    rows: tuple[dict[str, Any], ...] = dataclasses.field(repr=False)
    report: Path
    results: Path
    matches: Path
    members: Path

    def frame(self) -> Any:
        """The rows as a pandas DataFrame; needs pandas."""
        import pandas

        return pandas.DataFrame(list(self.rows))

    def gallery(self) -> Image.Image:
        """The sheet of the strongest attack's matches: generated image, nearest member, nearest held-out image.

        Raises:
          InputError: if the audit has no report yet, or a private one, which has no such sheet.
        """
        best = matches.shown(phrases.headline(records.read(self.results))) if self.rows else []
        path = self.report.with_name(f"matches_{matches.slug(best[0])}.png") if best else self.report
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
    config: Config | None, workdir: str | Path, stages: Sequence[str] | None = None, *, target: Target | None = None
) -> AuditResult:
    """Audits a model, as the command `side-jax` does: trains or reads it, attacks it, and measures what comes out.

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
      >>> result = side_jax.audit("smoke", "runs/smoke")
      >>> result.verdict
      'Not decided'
      >>> print(result.report)
      runs/smoke/report/index.html
      >>> sorted({row["metric"] for row in result.rows})
      ['distance_ratio', 'normalized_l2', 'rmse']
    """
    folder = files.as_path(workdir)
    if target is not None:
        cpu.use_one()
    given = _config(config, folder)
    settings = resolve(given if target is None else _with_object(given, target), folder)
    pipeline.run(settings, folder, stages)
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
    or [n, h, w, c] in 0..255, where c is 1 (grey) or 3 (colour).

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
      >>> result.rows[0]["ams"], result.rows[0]["heldout_ams"]
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


def _with_object(config: ml_collections.ConfigDict, target: Target) -> ml_collections.ConfigDict:
    """The config of a run that audits a Python object."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.target.path = f"{target.origin.format}:{target.origin.name}"
        (config.data.image_size, config.data.image_width), config.data.channels = target.size, target.channels
        config.evaluate.divergence = False  # needs derivatives
    logger.info("The memorisation divergence is not computed: a Python object has values and no derivatives.")
    return with_target(config, target, target.origin.digest)


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
        rows=tuple(files.read_json(folder / "results.json")["rows"]) if results else (),
        report=report,
        results=folder / "results.json",
        matches=folder / "matches.csv",
        members=folder / "members.csv",
    )
