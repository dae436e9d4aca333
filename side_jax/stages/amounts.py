"""What is left of a unit of work, in evaluations of networks for one image: for the time left (progress/).

A backward pass counts as one evaluation to the input, and as another one to the parameters. What is not of a network,
such as tables and figures, has seconds (estimates.py).
"""

from side_jax import builders
from side_jax.attacks.table import ATTACKS, PLAIN, Run
from side_jax.progress.chain import SECONDS, Amounts
from side_jax.sampling import shards
from side_jax.settings import Fit, Settings
from side_jax.stages import estimates
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit

NETWORK, CLASSIFIER = "network", "classifier"  # kinds of work: of networks of the target's size, and of classifiers
TRAINING, GRADIENT = 3, 2  # evaluations of a training step, and of a gradient with respect to the input


def training(unit: Unit, fit: Fit, kind: str = NETWORK) -> Amounts:
    """Of the steps that are left."""
    done = checkpoint.latest_step(checkpoint.checkpoint_directory(unit.workdir, unit.name)) if unit.begun() else None
    return {kind: TRAINING * fit.batch_size * max(fit.num_steps - (done or 0), 0)}


def labelling(settings: Settings) -> Amounts:
    """Of the clusters of synthetic images, at modes if settings ask for it."""
    return {SECONDS: estimates.CLUSTERING} | _rounds(settings, settings.label.rounds)


def adapting(settings: Settings, unit: Unit) -> Amounts:
    """Of the steps of the target's adapters that are left, and of the rounds before."""
    steps, rounds = training(unit, settings.adapters), _rounds(settings, settings.adapters.all_rounds)
    return {NETWORK: steps[NETWORK] + rounds.get(NETWORK, 0.0)}


def _rounds(settings: Settings, rounds: int) -> Amounts:
    """Of taking all synthetic images to modes."""
    return {NETWORK: float(settings.synthesize.num_images * rounds)} if rounds else {}


def imported() -> Amounts:
    """Of a target that is read from a file."""
    return {NETWORK: 0.0}


def sampling(settings: Settings, unit: Unit, parts: list[shards.Shard], run: Run | None) -> Amounts:
    """Of the images that are not stored yet; the run is None for synthetic images."""
    begun = unit.begun()  # files of other settings do not count
    images = sum(len(part.index) for part in parts if not (begun and part.path.exists()))
    run = run or Run(attack=PLAIN.name)
    # The images that mode seeking starts from are another unit's.
    amounts = {NETWORK: float(images * (run.round_calls or estimates.network_calls(settings, run)))}
    if ATTACKS[run.attack].searches:
        amounts[CLASSIFIER] = float(images)
    elif not run.rounds and ATTACKS[run.attack].classifier:
        segments = builders.build_step_table(settings, settings.guided_sampler).segments(True)
        steps = sum(stop - start for start, stop, guided in segments if guided)
        amounts[CLASSIFIER] = GRADIENT * images * steps
    return amounts


def evaluation(settings: Settings) -> Amounts:
    """Of the evaluation."""
    return {NETWORK: float(estimates.asked_calls(settings)), SECONDS: estimates.tabulating(settings)}


def reporting(settings: Settings, unit: Unit) -> Amounts:
    """Of the page."""
    return {SECONDS: estimates.reporting(settings, unit).host}
