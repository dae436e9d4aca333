"""The memorisation monitor against samples whose rates are known, its restart, and its place in the run."""

import dataclasses
import json

import numpy as np
import runs

from side_jax.memorization.metrics import Rmse
from side_jax.memorization.statistics.permutation import permutation_test
from side_jax.sampling.mode_generation import ModeGenerator
from side_jax.settings import Monitor
from side_jax.training import monitor
from side_jax.workdir.curves import Curves

RNG = np.random.default_rng(0)
MEMBERS, HELDOUT = (RNG.uniform(-1, 1, (40, 4, 4, 1)).astype(np.float32) for _ in range(2))
SIDES = monitor.Sides(members=MEMBERS, heldout=HELDOUT)


def near(images, noise):
    return images + noise * RNG.normal(size=images.shape).astype(np.float32)


def test_copies_of_members_are_counted_and_their_control_is_not():
    fresh = RNG.uniform(-1, 1, (30, 4, 4, 1)).astype(np.float32)
    row = monitor.measure(np.concatenate([near(MEMBERS[:10], 0.01), fresh]), SIDES)
    assert row["copied"] == 10 / 40
    assert row["copied_heldout"] == 0
    assert row["copied_ci"][0] < 0.25 < row["copied_ci"][1]
    assert row["copied_heldout_ci"][0] == 0 < row["copied_heldout_ci"][1]
    swapped = monitor.measure(near(HELDOUT, 0.01), SIDES)
    assert (swapped["copied"], swapped["copied_heldout"], swapped["closer"]) == (0, 1, 0)
    assert swapped["distance_heldout"] < 0.02 < swapped["distance_members"]


def test_matches_are_counted_by_the_metric():
    """Three kinds of samples: near members, near held-out images, and far from both."""
    fresh = RNG.uniform(-1, 1, (30, 4, 4, 1)).astype(np.float32)
    samples = np.concatenate([near(MEMBERS[:10], 0.01), near(HELDOUT[:5], 0.01), fresh])
    row = monitor.measure(samples, SIDES, Rmse(below=0.15))
    assert (row["matched"], row["matched_heldout"]) == (10 / 45, 5 / 45)
    assert row["matched_ci"][0] < 10 / 45 < row["matched_ci"][1]
    assert "matched" not in monitor.measure(samples, SIDES)


def looked(**values):
    """Rows of looks at steps 10, 20, ...: values of some rates' p-values."""
    return [
        {"step": 10 * (i + 1)} | {f"{name}_p": column[i] for name, column in values.items()}
        for i in range(len(next(iter(values.values()))))
    ]


def test_memorisation_begins_below_the_level_of_the_look():
    """0.05 / 2 at the first look, 0.05 / 6 at the second, 0.05 / 12 at the third."""
    rows = looked(copied=[0.03, 0.009, 0.005], closer=[0.02, 1, 1], modes_copied=[0.04, 0.008, 0.0001])
    assert monitor.onset(rows) == {"copied": None, "closer": 10, "modes_copied": 20}
    assert monitor.onset([*rows, {"step": 40, "copied_p": 0.0025}])["copied"] == 40
    assert monitor.onset([{"step": 10, "copied_ci": [0.5, 0.6], "copied_heldout_ci": [0, 0.1]}]) == {}


def test_chance_begins_no_memorisation_however_often_one_looks():
    rng, begun = np.random.default_rng(0), 0
    for _ in range(400):
        begun += monitor.onset(looked(copied=rng.uniform(size=50)))["copied"] is not None
    assert begun < 0.08 * 400


def test_the_last_clean_step_is_before_any_sign():
    """Of matches and copies, without a correction; that samples are closer to members is no sign."""
    rows = looked(
        matched=[0.5, 0.5, 0.5], copied=[1, 1, 0.01], modes_matched=[0.06, 0.05, 0.9], closer=[1e-4, 1e-4, 1e-4]
    )
    assert monitor.last_clean(rows) == 10
    assert monitor.last_clean(rows[1:]) is None
    assert monitor.last_clean(rows[:1]) == 10


def test_p_values_are_of_members_and_held_out_images_together():
    """Ten members are copied, five held-out images are; then by two people of each side."""
    samples = np.concatenate([near(MEMBERS[:10], 0.01), near(HELDOUT[:5], 0.01)])
    row = monitor.measure(samples, SIDES, Rmse(below=0.15))
    hits = (np.arange(80) < 10) | ((np.arange(80) >= 40) & (np.arange(80) < 45))
    expected, _ = permutation_test(hits, np.arange(80) < 40)
    assert row["matched_p"] == row["copied_p"] == row["closer_p"] == expected
    people = np.repeat([0, 1], 20), np.repeat([2, 3], 20)
    grouped = monitor.measure(samples, dataclasses.replace(SIDES, groups=people), Rmse(below=0.15))
    assert grouped["matched_p"] > 0.1
    untested = dataclasses.replace(SIDES, tested=np.arange(40) >= 10)
    assert monitor.measure(samples, untested, Rmse(below=0.15))["matched_p"] == 1
    assert monitor.measure(samples, dataclasses.replace(SIDES, tested=np.zeros(40, bool)))["copied_p"] == 1


def test_fresh_samples_are_as_near_to_either_side():
    """The chance level: over 2,000 samples that know neither side, half are closer to a member."""
    fresh = RNG.uniform(-1, 1, (2000, 4, 4, 1)).astype(np.float32)
    low, high = monitor.measure(fresh, SIDES)["closer_ci"]
    # The two sets are fixed, and one lies a little nearer to the middle than the other.
    assert low < 0.56
    assert high > 0.44


def test_twin_members_are_no_evidence():
    twins = np.concatenate([MEMBERS[:1], MEMBERS[:1], MEMBERS[5:]])
    assert monitor.measure(MEMBERS[:1], monitor.Sides(members=twins, heldout=HELDOUT))["copied"] == 0


class Seeker:
    """A program of mode seeking that takes every image to the member of its index, and notes from where."""

    batch_size, shape = 16, (4, 4, 1)

    def __init__(self):
        self.starts = []

    def generator(self, samples):
        return ModeGenerator(program=self, rounds=np.ones(1), starts=lambda index: samples[index])

    def call(self, params, base, levels, index, images):
        index = np.asarray(index).ravel()
        self.starts.append(np.asarray(images).reshape(16, 4, 4, 1))
        return np.round((MEMBERS[index % 40] + 1) * 127.5).astype(np.uint8).reshape(np.shape(images))


def test_the_monitor_seeks_modes_from_its_samples_and_stops_by_them(tmp_path):
    settings = Monitor(every_steps=10, num_samples=40, stop_at_rate=0.5, stop_at_modes_rate=0.9)
    generator, seeker = Copier(), Seeker()
    with Curves(tmp_path / "monitor.jsonl", first_step=0) as curves:
        watch = monitor.Monitor(settings, generator, None, SIDES, curves, seeker.generator)
        assert watch(10, "noise") is True
        (row,) = curves.rows
    assert (row["copied"], row["modes_copied"], row["modes_copied_heldout"]) == (0, 1, 0)
    assert generator.calls == len(seeker.starts) == 3
    with Curves(tmp_path / "other.jsonl", first_step=0) as curves:
        watch = monitor.Monitor(
            Monitor(every_steps=10, num_samples=40), generator, None, SIDES, curves, seeker.generator
        )
        assert watch(10, "noise") is False


class Copier:
    """A generator that draws the members, or noise, as its parameters say."""

    batch_size = 16

    def __init__(self):
        self.calls = 0

    def __call__(self, params, base, index, labels, scale):
        self.calls += 1
        if params["dpm"] == "noise":
            return RNG.integers(0, 256, (len(index), 4, 4, 1), np.uint8)
        return np.round((MEMBERS[index % 40] + 1) * 127.5).astype(np.uint8)


def test_monitor_stops_at_its_rate_and_measures_no_step_twice(tmp_path):
    settings = Monitor(every_steps=10, num_samples=40, stop_at_rate=0.5)
    generator = Copier()
    with Curves(tmp_path / "monitor.jsonl", first_step=0) as curves:
        watch = monitor.Monitor(settings, generator, None, SIDES, curves)
        assert watch(10, "noise") is False
        assert watch(20, "members") is True
    assert generator.calls == 6  # 40 samples in batches of 16, twice
    with Curves(tmp_path / "monitor.jsonl", first_step=20) as curves:  # killed after the checkpoint of step 20
        assert monitor.Monitor(settings, generator, None, SIDES, curves)(20, "members") is True
        assert generator.calls == 6
    with Curves(tmp_path / "monitor.jsonl", first_step=10) as curves:  # killed before it: measured again
        assert [row["step"] for row in curves.rows] == [10]
        assert monitor.Monitor(Monitor(every_steps=10), generator, None, SIDES, curves)(20, "members") is False


def test_a_watched_run_stops_at_its_rate_and_the_report_shows_it(tmp_path, monkeypatch):
    """The rate is reached at the second look: training ends there, says so, and is done; the other stages follow.

    There are fewer held-out images than members, here and in the evaluation.
    """
    measure, rates = monitor.measure, iter([0.2, 0.0, 0.3, 0.0])  # of the samples, then of their modes
    monkeypatch.setattr(monitor, "measure", lambda *arguments: measure(*arguments) | {"copied": next(rates)})
    workdir = tmp_path / "run"
    watched = {"monitor__every_steps": 10, "monitor__num_samples": 32, "monitor__stop_at_rate": 0.3}
    watched["data__num_heldout"] = 24
    assert runs.run(runs.arguments(workdir, extract__attacks="('unconditional',)", **watched)) == 0
    rows = [json.loads(line) for line in (workdir / "train" / "monitor.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]
    manifest = json.loads((workdir / "train" / "manifest.json").read_text())
    assert manifest["done"]
    assert manifest["steps"] == 20
    assert (workdir / "checkpoints" / "20" / "ema").exists()
    assert not (workdir / "checkpoints" / "40").exists()
    page = (workdir / "report" / "index.html").read_text()
    assert "At no measured step" in page  # 20 steps are too few to copy anything
    assert "of the modes that these samples lead to copied a member" in page
    assert all(0 <= row["modes_copied"] <= 1 for row in rows)
    assert all(row["closer_chance"] == 64 / 88 for row in rows)
    dataset = json.loads((workdir / "evaluate" / "results.json").read_text())["dataset"]
    assert (dataset["members"], dataset["heldout_used"]) == (64, 24)
