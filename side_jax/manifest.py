"""What each stage has done, and whether it still holds.

The work of a run is cut into units (`train`, `synthesize`, `label`, `surrogate/side`, `extract/side_10`, ...). A unit's
fingerprint is a hash of the settings that it depends on and of the fingerprints of the units it reads from, so a
changed setting reaches exactly what depends on it. A unit owns <workdir>/<unit>/; its manifest.json there says with
which fingerprint it was begun and whether it is done. A unit that lost an output is not done: it is run again,
and since it comes out the same, what was made from it stays.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_jax import __version__, files, parallel
from side_jax.settings import ATTACKS, SOURCES, Run, Settings

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# The settings that change how a run is watched or executed, or where it finds things, but not what it computes; that
# the data are the same wherever they lie, the split file's hashes say.
_NOT_PART = [
    *[
        (fit, key)
        for fit in ("train", "surrogate", "conditional")
        for key in ("log_every", "checkpoint_every", "accumulate")
    ],
    ("label", "weights"),  # their content is in weights_sha256
    ("surrogate", "teacher_path"),
    *[("data", key) for key in ("path", "data_dir", "storage", "memory_limit_mb", "max_corrupt")],
    ("model", "remat"),
    ("target", "path"),
    ("condition", "path"),  # its content is in sha256
]
# Of settings.extract, what changes guided runs alone.
_GUIDES = ("temperature_scaling", "guidance_form", "guidance_interval", "normalize_gradient")
# What makes the target model; a workdir belongs to one.
TARGET_SECTIONS = ("seed", "data", "target", "diffusion", "model", "condition", "train", "monitor")
# Unit: (settings that it depends on, units that it reads).
_DEPENDENCIES = {
    "train": (TARGET_SECTIONS, ()),
    "synthesize": (("sampler", "synthesize"), ("train",)),
    "label": (("label",), ("synthesize",)),
    "surrogate/side": (("classifier", "surrogate"), ("label",)),
    "surrogate/side_random": (("classifier", "surrogate"), ("label",)),
    "surrogate/side_shuffled": (("classifier", "surrogate"), ("label",)),
    "surrogate/side_heldout": (("label", "classifier", "surrogate"), ("train",)),
    "surrogate/oracle": (("classifier", "surrogate"), ("train",)),
    "surrogate/conditional": (("classifier", "conditional"), ("train",)),
} | {
    f"extract/{name}": (("sampler",), (f"surrogate/{attack.classifier}" if attack.classifier else "train",))
    for name, attack in ATTACKS.items()
}


def _outputs(manifest: dict[str, Any]) -> list[str]:
    """What a unit that is done must hold, below the workdir; shards have a check of their own.

    The curves of the DPM are not among them: nothing is computed from them, and only training from the start would
    write them again.
    """
    unit, steps, best = manifest["unit"], manifest.get("steps"), manifest.get("best_step")
    of_classifiers = [f"checkpoints/{steps}", "levels.json", "metrics.jsonl", "validation.jsonl"]
    stage, slash, _ = unit.partition("/")
    return {
        "train": ["train/split.json", f"checkpoints/{steps}"],
        "synthesize": ["synthesize/samples.png"],
        "label": ["label/labels.npz", "label/clusters.png"],
        "surrogate/": [f"{unit}/{name}" for name in of_classifiers + ([f"best/{best}"] if best else [])],
        "evaluate": [f"evaluate/{name}" for name in ("results.json", "matches.csv", "members.csv")],
        "suspects": ["suspects/suspects.csv", "suspects/suspects.png"],
        "report": [f"report/{name}" for name in ("index.html", *manifest.get("figures", []))],
    }.get(stage + slash, [])


def fingerprint(settings: Settings, unit: str, **more: Any) -> str:
    """The hash of all that the unit's output depends on; `more` adds what the settings alone do not say."""
    sections, parents = _DEPENDENCIES[unit]
    values = dataclasses.asdict(settings)
    own = {name: values[name] for name in sections}
    for section, key in _NOT_PART:
        own.get(section, {}).pop(key, None)
    if unit == "train" and settings.target.path:
        del own["train"]  # a foreign model was not trained by it
    if unit == "train" and not settings.condition.labels:
        del own["condition"]  # without labels none are left out
    if unit == "train" and not settings.monitor.stop_at_rate:
        del own["monitor"]  # watching alone changes nothing
    above = [fingerprint(settings, parent) for parent in parents]
    return files.digest({"unit": unit, "format": FORMAT_VERSION, "own": own, "parents": above, "more": more})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of work in a workdir."""

    workdir: Path
    name: str
    fingerprint: str

    @property
    def directory(self) -> Path:
        """<workdir>/<unit>."""
        return self.workdir / self.name

    @property
    def _path(self) -> Path:
        return self.directory / "manifest.json"

    def _read(self) -> dict[str, Any] | None:
        return files.read_json(self._path) if self._path.exists() else None

    def _finished(self) -> bool:
        manifest = self._read()
        return bool(manifest and manifest["done"] and manifest["fingerprint"] == self.fingerprint)

    def _lost(self) -> list[str]:
        return [name for name in _outputs(self.content()) if not (self.workdir / name).exists()]

    def done(self, without: Sequence[str] = ()) -> bool:
        """Whether the unit is finished with this very fingerprint, and its outputs, but for some, are still there."""
        return self._finished() and set(self._lost()) <= set(without)

    def begun(self) -> bool:
        """Whether what is there, if anything, was made with this very fingerprint."""
        manifest = self._read()
        return bool(manifest and manifest["fingerprint"] == self.fingerprint)

    def content(self) -> dict[str, Any]:
        """What `finish` recorded, the last time."""
        return files.read_json(self._path)

    def begin(self, intact: Callable[[], bool] = lambda: True) -> bool:
        """Prepares the directory; returns False, and says so, where there is nothing left to do.

        What an earlier run left with the same fingerprint stays, to be continued. What another fingerprint left is
        moved to <workdir>/stale/, never deleted. With several processes all call this together, and the first one acts.

        Args:
          intact: whether what a finished unit wrote beside its outputs is still whole; if not, it is begun again.
        """
        if parallel.primary():
            self._begin(intact)
        parallel.barrier(f"{self.name} begun")
        return not self.done()

    def _begin(self, intact: Callable[[], bool]) -> None:
        finished = self._finished()
        lost = self._lost() if finished else []
        if finished and not lost and intact():
            logger.info("%s: up to date, nothing to do.", self.name)
            return
        if lost:
            logger.info("%s: %s is missing: made again.", self.name, " and ".join(lost))
        manifest = self._read() or {}
        if manifest and manifest["fingerprint"] != self.fingerprint:
            aside = self.workdir / "stale" / f"{self.name.replace('/', '-')}-{manifest['fingerprint'][:12]}"
            while aside.exists():
                aside = aside.with_name(aside.name + "+")
            files.move(self.directory, aside, last=self._path.name)
            logger.info("%s: its settings or inputs changed; the old results are now in %s.", self.name, aside)
            manifest = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        # What was recorded the last time stays: the split is compared with it.
        begun = {"unit": self.name, "fingerprint": self.fingerprint, "done": False}
        files.write_json(self._path, manifest | begun)

    def finish(self, **content: Any) -> None:
        """Marks the unit as done, once every process is, and records what the first one has to say."""
        parallel.barrier(f"{self.name} done")
        if parallel.primary():
            self._finish(content)
        parallel.barrier(f"{self.name} finished")

    def _finish(self, content: dict[str, Any]) -> None:
        base = {"unit": self.name, "fingerprint": self.fingerprint, "format": FORMAT_VERSION, "done": True}
        files.write_json(self._path, base | content)


def finish_stage(workdir: Path, stage: str, units: list[Unit]) -> None:
    """Writes <workdir>/<stage>/manifest.json for a stage of several units, all of them done."""
    whole = Unit(workdir=workdir, name=stage, fingerprint=files.digest([unit.fingerprint for unit in units]))
    if not whole.done():
        whole.finish(units=[unit.name for unit in units])


def surrogate_units(settings: Settings, workdir: Path) -> dict[str, Unit]:
    """The classifiers that guide the attacks that the config asks for."""
    return {name: unit(settings, workdir, f"surrogate/{name}") for name in settings.extract.classifiers}


def extraction_units(settings: Settings, workdir: Path) -> list[tuple[Run, Unit]]:
    """Every attack at every guidance scale, with its unit of work."""
    found = []
    for run in settings.extract.runs():
        more = {"guidance_scale": run.scale, "num_images": settings.extract.num_images}
        by = settings.guided_sampler if run.guided else settings.sampler
        more |= {key: getattr(by, key) for key in ("solver", "num_steps")}
        if run.guided:
            more |= {key: getattr(settings.extract, key) for key in _GUIDES}
            if ATTACKS[run.attack].own_labels:
                del more["temperature_scaling"]  # of classifiers
        found.append((run, unit(settings, workdir, f"extract/{run.attack}", f"extract/{run.name}", **more)))
    return found


def blind_units(settings: Settings, workdir: Path) -> list[tuple[Run, Unit]]:
    """Those of extraction_units that need neither training nor held-out images; a model's own labels come with it."""
    learns = {name: SOURCES.get(attack.classifier) for name, attack in ATTACKS.items()}
    units = extraction_units(settings, workdir)
    return [(run, work) for run, work in units if learns[run.attack] in (None, "synthetic")]


def evaluation_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that scores every extraction run."""
    parents = [work.fingerprint for _, work in extraction_units(settings, workdir)]
    more = {"evaluate": dataclasses.asdict(settings.evaluate), "parents": parents, "format": FORMAT_VERSION}
    if settings.uses_features:
        label = dataclasses.asdict(settings.label)
        more["features"] = {name: value for name, value in label.items() if ("label", name) not in _NOT_PART}
    return Unit(workdir=workdir, name="evaluate", fingerprint=files.digest(more))


def report_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that writes the report."""
    parent = evaluation_unit(settings, workdir).fingerprint
    shown = dataclasses.asdict(settings.report)
    fingerprint = files.digest({"name": settings.name, "report": shown, "parent": parent, "version": __version__})
    return Unit(workdir=workdir, name="report", fingerprint=fingerprint)


def suspects_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit that ranks generated images without the training data."""
    parents = [work.fingerprint for _, work in blind_units(settings, workdir)]
    own = {"rmse_below": settings.evaluate.rmse_below, "timestep": settings.evaluate.membership_timestep}
    more = {"own": own, "parents": parents, "format": FORMAT_VERSION}
    return Unit(workdir=workdir, name="suspects", fingerprint=files.digest(more))


def unit(settings: Settings, workdir: Path, name: str, directory: str | None = None, **more: Any) -> Unit:
    """The unit `name`, which owns <workdir>/<directory or name>."""
    return Unit(workdir=workdir, name=directory or name, fingerprint=fingerprint(settings, name, **more))
