"""Settings that fit into a time: with steps of known length, the time of every plan can be computed by hand."""

import dataclasses

import jax
import pytest

from side_jax.attacks.table import NOISE
from side_jax.errors import InputError
from side_jax.pipeline import budget, clock
from side_jax.settings import Data, Settings, Target
from side_jax.stages import estimates
from side_jax.stages.estimates import Timing

DATA = Data(name="folder", path="seen", heldout_from="unseen", num_members=100, num_heldout=100)
NO_EXTRAS = {"membership": False, "divergence": False, "loss_images": 1}
CALL = 0.01  # seconds of one evaluation of the network for one image


def settings(**sections):
    base = Settings(data=DATA, target=Target(path="model", sha256="0" * 64))
    parts = {"evaluate": NO_EXTRAS} | sections
    return dataclasses.replace(
        base, **{name: dataclasses.replace(getattr(base, name), **values) for name, values in parts.items()}
    )


@pytest.fixture(autouse=True)
def fixed(monkeypatch):
    """A call of the network takes CALL seconds, a guided step twice as long, a classifier's step nothing."""

    def step(self, attack):
        guided = attack is not None and attack.guided
        return Timing(step=(1 + guided) * CALL * self._settings.sampler.batch_size * jax.device_count())

    monkeypatch.setattr(clock.Clock, "sampling_step", step)
    monkeypatch.setattr(clock.Clock, "classifier_step", lambda self, classifier: Timing(step=0.0))
    monkeypatch.setattr(clock.Clock, "product", lambda self: 0.0)
    for name in ("CLUSTERING", "_EVALUATE", "_TABLES", "_REPORT", "_SHEET"):
        monkeypatch.setattr(estimates, name, 0.0)


def chosen(tmp_path, seconds, given=frozenset({"evaluate.loss_images"}), attacks=(), **sections):
    return budget.choose(settings(**sections), tmp_path, seconds / budget.SHARE, given, attacks)[0]


def names(found):
    return found.extract.attacks, found.sampler.num_steps, found.extract.num_images


PROBE = 2 * 8 * CALL  # the denoising loss of one member and one held-out image


@pytest.mark.parametrize("batches", [2, 5, 20])
def test_as_many_images_as_fit(tmp_path, batches):
    """20 steps and five rounds: 25 calls for each image, in whole batches of 64."""
    exactly = batches * 64 * 25 * CALL + PROBE
    for seconds, count in ((exactly + 0.001, batches), (exactly - 0.001, batches - 1)):
        found = chosen(tmp_path, seconds)
        assert names(found) == (("unconditional", "modes"), 20, count * 64)


def test_less_time_takes_fewer_steps(tmp_path):
    exactly = 64 * 15 * CALL + PROBE  # 10 steps and five rounds
    assert names(chosen(tmp_path, exactly + 0.001)) == (("unconditional", "modes"), 10, 64)
    with pytest.raises(
        InputError, match="the smallest audit of this model, with 64 images of each attack, takes about"
    ):
        chosen(tmp_path, exactly - 0.1)
    small = chosen(tmp_path, 16 * 15 * CALL + PROBE + 0.001, sampler={"batch_size": 8})
    assert names(small) == (("unconditional", "modes"), 10, 16)


def test_side_joins_where_there_is_time(tmp_path):
    """2,048 synthetic images, and of plain sampling, mode seeking and two scales of SIDE and of its control as many."""
    exactly = 2048 * (20 + 25 + 4 * 2 * 20) * CALL + PROBE
    with_side = ("unconditional", "side", "side_random", "modes")
    assert names(chosen(tmp_path, exactly + 0.001)) == (with_side, 20, 2048)
    assert names(chosen(tmp_path, exactly - 0.001)) == (("unconditional", "modes"), 20, budget.MOST)


def test_no_more_than_most(tmp_path):
    assert chosen(tmp_path, 1e9).extract.num_images == budget.MOST
    assert chosen(tmp_path, 1e9, attacks=("unconditional",)).extract.num_images == budget.MOST


def test_what_the_user_sets_stays(tmp_path):
    given = {"evaluate.loss_images", "extract.num_images", "sampler.num_steps"}
    mine = {"extract": {"num_images": 320}, "sampler": {"num_steps": 7}}
    found = chosen(tmp_path, 320 * 12 * CALL + PROBE + 0.001, given, **mine)
    assert names(found) == (("unconditional", "modes"), 7, 320)
    with pytest.raises(InputError, match="with 320 images of each attack"):
        chosen(tmp_path, 320 * 12 * CALL, given, **mine)


def test_mode_seeking_alone_starts_from_noise(tmp_path):
    found = chosen(tmp_path, 64 * 5 * CALL + PROBE + 0.001, attacks=("modes",))
    assert (found.extract.attacks, found.modes.starts, found.extract.num_images) == (("modes",), (NOISE,), 64)


def test_measures_of_the_model_that_take_long_are_left_out(tmp_path):
    """Membership: about 22 calls for each member and held-out image; the likelihood: 450 for each of 2 x 64 points."""
    on = {"evaluate": {"membership": True, "divergence": True}}
    for seconds, expected in ((100, (False, False)), (1000, (True, False)), (9000, (True, True))):
        found = chosen(tmp_path, seconds, frozenset(), **on)
        assert (found.evaluate.membership, found.evaluate.divergence) == expected
        probed = found.evaluate.loss_images
        affordable = budget.EXTRAS * seconds / budget.SHARE / (2 * 8 * CALL)
        assert probed == int(min(1024, affordable)) >= budget.LEAST_PROBED


def test_the_rest_fits_into_what_is_left(tmp_path):
    first, known = budget.choose(settings(), tmp_path, 1000 * 25 * CALL / budget.SHARE, {"evaluate.loss_images"})
    assert first.extract.num_images == 960
    left = (320 * 25 * CALL + PROBE + 0.001) / budget.SHARE
    fewer = budget.refit(first, tmp_path, left, frozenset(), known)
    assert fewer == dataclasses.replace(first, extract=dataclasses.replace(first.extract, num_images=320))
    assert budget.refit(first, tmp_path, 10 * left, frozenset(), known) == first
    assert budget.refit(first, tmp_path, 0.0, frozenset(), known).extract.num_images == 64  # never none


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10min", 600), ("1.5h", 5400), (" 2 min ", 120), (45, 45.0), ("45", 45.0)]
)
def test_times_as_people_write_them(text, expected):
    assert budget.seconds(text) == expected


@pytest.mark.parametrize("text", ["10 minutes", "", "-5", "0s", "1.2.3s", "nan", "inf", "1d"])
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="is no time; give one such as 90s, 10min or 2h"):
        budget.seconds(text)


def test_a_large_network_samples_few_at_once(monkeypatch):
    """The operations that XLA counts, at 4 seconds each and with them at nothing."""
    small = settings()
    assert budget.batch_size(small) == budget.BATCHES["cpu"]
    monkeypatch.setattr(clock.Clock, "product", lambda self: 4.0)
    assert budget.batch_size(small) == jax.local_device_count()


def test_a_search_has_its_first_generations_however_short_the_time(tmp_path):
    """500 images, in whole batches; where these do not fit, more time is asked for, and what began is ended."""
    attacks = ("unconditional", "black_box")
    exactly = (2048 + 8 * 64 + 9 * 64) * 20 * CALL + PROBE  # a batch of the search is of two generations
    assert names(chosen(tmp_path, exactly + 0.001, attacks=attacks)) == (attacks, 20, 512)
    with pytest.raises(InputError, match="the smallest audit of this model, with 500 images of each attack"):
        chosen(tmp_path, 2048 * 10 * CALL + PROBE, attacks=attacks)
    first, known = budget.choose(settings(), tmp_path, 1e9, {"evaluate.loss_images"}, attacks)
    assert budget.refit(first, tmp_path, 0.0, frozenset(), known).extract.num_images == 500
