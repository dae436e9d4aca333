"""What is left of a run, in evaluations of networks for one image: amounts of work for the time left (progress/).

A backward pass counts as one evaluation to the input, and as another one to the parameters. What is not of a network,
such as tables and figures, has seconds (estimates.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from side_jax import builders
from side_jax.attacks.table import ADAPTED, ATTACKS, PLAIN, Run, known_classifiers
from side_jax.progress import Work
from side_jax.progress.chain import SECONDS, Amounts
from side_jax.sampling import shards
from side_jax.settings import Fit, Settings
from side_jax.stages import estimates, stage_table
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit

NETWORK, CLASSIFIER = "network", "classifier"  # kinds of work: of networks of the target's size, and of classifiers
TRAINING, GRADIENT = 3, 2  # evaluations of a training step, and of a gradient with respect to the input


def work(settings: Settings, workdir: Path, chosen: Sequence[str]) -> Work:
    """What the chosen stages have left to do."""
    units: dict[str, dict[str, Amounts]] = {}
    for name in chosen:
        left = [one for one in stage_table.STAGES[name].plan(settings, workdir) if not one.unit.done()]
        if not left or name in _AMOUNTS:
            units[name] = {one.unit.name: _AMOUNTS[name](settings, one) for one in left}
    return Work(units=units)


def _train(settings: Settings, one: stage_table.Work) -> Amounts:
    if settings.target.path:  # imported
        return {NETWORK: 0.0}
    return {NETWORK: _training(settings.train, one.unit)}


def _synthesize(settings: Settings, one: stage_table.Work) -> Amounts:
    parts = stage_table.synthetic_shards(settings, one.unit.workdir)
    calls = estimates.network_calls(settings, Run(attack=PLAIN.name))
    return {NETWORK: calls * _images(one.unit, parts)}


def _label(settings: Settings, one: stage_table.Work) -> Amounts:
    rounds = settings.synthesize.num_images * settings.label.rounds
    return {SECONDS: estimates.clustering()} | ({NETWORK: float(rounds)} if rounds else {})


def _surrogate(settings: Settings, one: stage_table.Work) -> Amounts:
    name = one.unit.name.rpartition("/")[2]
    classifier = known_classifiers().get(name)
    if name == ADAPTED.name:
        rounds = settings.synthesize.num_images * settings.adapters.all_rounds
        return {NETWORK: rounds + _training(settings.adapters, one.unit)}
    if classifier is None:  # the weaker model
        return {NETWORK: _training(settings.weak, one.unit)}
    return {CLASSIFIER: _training(getattr(settings, classifier.section), one.unit)}


def _extract(settings: Settings, one: stage_table.Work) -> Amounts:
    run = one.run
    assert run
    images = _images(one.unit, stage_table.extracted_shards(settings, one.unit))
    # The images that mode seeking starts from are another unit's.
    amounts = {NETWORK: images * (run.rounds or estimates.network_calls(settings, run))}
    if ATTACKS[run.attack].searches:
        amounts[CLASSIFIER] = float(images)
    elif not run.rounds and ATTACKS[run.attack].classifier:
        segments = builders.build_step_table(settings, settings.guided_sampler).segments(True)
        steps = sum(stop - start for start, stop, guided in segments if guided)
        amounts[CLASSIFIER] = GRADIENT * images * steps
    return amounts


def _evaluate(settings: Settings, one: stage_table.Work) -> Amounts:
    return {NETWORK: float(estimates.asked_calls(settings)), SECONDS: estimates.tabulating(settings)}


def _training(fit: Fit, unit: Unit) -> float:
    done = checkpoint.latest_step(checkpoint.checkpoint_directory(unit.workdir, unit.name)) if unit.begun() else None
    return TRAINING * fit.batch_size * max(fit.num_steps - (done or 0), 0)


def _images(unit: Unit, parts: list[shards.Shard]) -> int:
    begun = unit.begun()  # files of other settings do not count
    return sum(len(part.index) for part in parts if not (begun and part.path.exists()))


_AMOUNTS: dict[str, Callable[[Settings, stage_table.Work], Amounts]] = {
    "train": _train,
    "synthesize": _synthesize,
    "label": _label,
    "surrogate": _surrogate,
    "extract": _extract,
    "evaluate": _evaluate,
    "report": lambda settings, one: {SECONDS: estimates.reporting(settings, one.unit).host},
}
