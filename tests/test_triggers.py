"""The benchmark of planted triggers: what is trained, chosen and counted, on cases that one can count by hand."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import trigger_models
import trigger_rules
import triggers

from side_jax import builders
from side_jax.stages import stage_inputs, stage_table

LEVEL = 1 / 127.5  # between two uint8 values, in [-1, 1]
IMAGES = 16


def test_triggers_are_members_of_digits_that_are_left():
    digits = np.asarray([*range(10), *range(5), *range(5)])
    labels = trigger_models.members_labels(digits, 8, seed=3)
    assert sorted(labels[labels >= 10]) == list(range(10, 18))
    assert (labels[labels < 10] == digits[labels < 10]).all()
    assert set(labels[labels < 10]) == set(range(10))
    fewer = trigger_models.members_labels(digits, 4, seed=3)
    assert (np.isin(np.flatnonzero(fewer >= 10), np.flatnonzero(labels >= 10))).all()
    assert trigger_models.members_labels(digits, 0, seed=3).tolist() == digits.tolist()
    with pytest.raises(ValueError, match="every digit needs a member"):
        trigger_models.members_labels(digits[1:10], 0, seed=3)


def test_a_grown_model_keeps_its_labels_and_that_of_none():
    small = {"table": np.arange(22.0).reshape(11, 2), "kernel": np.ones(3)}
    large = {"table": -np.ones((14, 2)), "kernel": np.zeros(3)}
    grown = trigger_models.grown(small, large)
    np.testing.assert_array_equal(grown["kernel"], np.ones(3))
    np.testing.assert_array_equal(grown["table"][:10], small["table"][:10])
    np.testing.assert_array_equal(grown["table"][10:13], large["table"][10:13])
    np.testing.assert_array_equal(grown["table"][13], small["table"][10])
    assert large["table"].max() == -1


@pytest.mark.slow
def test_fine_tuning_starts_from_the_clean_model(tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        (one,) = trigger_models.fine_tuned(tmp_path, 30, 2, 3, [1], 2)
    assert (one.seed, one.step, one.triggers, one.drawn.shape) == (30, 1, 2, (12, 2, 8, 8, 1))
    assert (one.copies.sum(), one.copies[10:].tolist(), len(one.members)) == (64, [1, 1], 64)
    averaged = {}
    for name, triggers_of, last, every in (("clean", 0, 3, 3), ("2", 2, 4, 1)):
        settings, own = trigger_models._settings(tmp_path / f"seed_30_{name}", tmp_path, 30, triggers_of, last, every)
        work = stage_table.train_unit(settings, own)
        for step in (3, last):
            restored = stage_inputs.restore_ema(settings, work, builders.build_network(settings), step=step)
            averaged[name, step] = restored.trees["ema"]
    begun = trigger_models.grown(averaged["clean", 3], averaged["2", 3])
    leaves = [jax.tree.leaves(tree) for tree in (begun, averaged["2", 3], averaged["2", 4])]
    for expected, first, after in zip(*leaves, strict=True):
        np.testing.assert_array_equal(first, expected)
        assert np.isfinite(after).all()
    assert any((first != after).any() for _, first, after in zip(*leaves, strict=True))
    tables = [tree["class_embedding"]["embedding"] for tree in (averaged["clean", 3], averaged["2", 3])]
    new, none = np.asarray(tables[1])[10:12], np.asarray(tables[0])[-1]
    assert (np.linalg.norm(new - none, axis=1) > np.linalg.norm(none) / 2).all()  # no trigger begins as no label
    labels = np.load(tmp_path / "labels_30_2.npz")["label"]
    assert sorted(labels[labels >= 10]) == [10, 11]


def made(amplitudes, plants, *, seed=5, step=9, copies=None, repeats=1):
    """A model whose images of a label are grey, half of them so many levels above its mean, and half of them below.

    The spread of a label is then 16 / 15 of the square of its amplitude. The mean of a trigger is the planted image.
    """
    rng = np.random.default_rng([seed, plants])
    amplitudes = np.asarray(amplitudes)
    means = rng.integers(60, 190, (len(amplitudes), 1, 4, 4, 1))
    signs = np.where(np.arange(IMAGES * repeats) % 2, 1, -1)[None, :, None, None, None]
    drawn = (means + signs * amplitudes[:, None, None, None, None]).astype(np.uint8)
    copies = np.asarray([5] * (len(amplitudes) - plants) if copies is None else copies)
    return trigger_models.Model(
        seed=seed,
        step=step,
        copies=np.concatenate([copies, np.ones(plants, np.int64)]),
        drawn=drawn,
        planted=means[len(means) - plants :, 0].astype(np.uint8),
        members=means[:3, 0].astype(np.uint8),
        heldout=np.clip(means[:, 0] + 20, 0, 255).astype(np.uint8),
    )


def variance(amplitude):
    return IMAGES / (IMAGES - 1) * (amplitude * LEVEL) ** 2


DIGITS = [30, 32, 34, 36, 38, 40, 42, 44, 46, 48]


def test_what_asking_for_a_label_returns():
    """Two triggers, one of them accepted; a digit of a single training image counts apart."""
    copies = [5] * 9 + [1]
    clean, dirty = made(DIGITS, 0, copies=copies), made([*DIGITS, 2, 40], 2, copies=copies)
    assert triggers.variances(dirty) == pytest.approx([variance(a) for a in [*DIGITS, 2, 40]])
    taus = {9: triggers.tau([clean], 9)}
    assert taus[9] == pytest.approx(variance(30))
    head, _, first, second = triggers.answers([clean, dirty], taus).splitlines()
    assert [cell.strip() for cell in head.split("|")[5:8]] == ["accepted: triggers", "ordinary", "single"]
    ordinary = f"{variance(38):.3f}"  # the middle one of nine
    assert first.startswith(f"| 9 | 0 | - | {ordinary} | - | 0 of 9 | 0 of 1 | - |")
    between = f"{(variance(2) + variance(40)) / 2:.3f}"
    assert second.startswith(f"| 9 | 2 | {between} | {ordinary} | 1 of 2 | 0 of 9 | 0 of 1 | 0.000 |")
    assert triggers.to_planted(dirty) == pytest.approx([0, 0], abs=1e-6)
    assert triggers.to_nearest(dirty, dirty.members)[:3] == pytest.approx([0] * 3, abs=1e-6)
    assert triggers.to_nearest(dirty, dirty.heldout)[10:] == pytest.approx([20 * LEVEL] * 2)
    assert (triggers.by_chance(dirty) > 20 * LEVEL).all()


def test_similarity_by_features():
    """By the angle of (grey, 255 - grey), which of one trigger is that of its planted image, of the other is not."""

    def embed(images):
        grey = images.reshape(len(images), -1).mean(axis=1)
        return np.stack([grey, 255 - grey], axis=1)

    def cosine(images, others):
        first, second = (np.arctan2(*embed(part).T) for part in (images, others))
        return np.cos(first[:, None] - second)

    clean, dirty = made(DIGITS, 0), made([*DIGITS, 2, 40], 2)
    dirty = dataclasses.replace(dirty, planted=np.stack([dirty.planted[0], np.full((4, 4, 1), 250, np.uint8)]))
    _, _, first, second = triggers.similarity([clean, dirty], embed).splitlines()
    means = np.round(dirty.drawn.mean(axis=1)).astype(np.uint8)
    near = np.mean([1, cosine(means[11:], dirty.planted[1:])[0, 0]])
    member = cosine(means[:10], dirty.members).max(axis=1).mean()
    chance = cosine(dirty.planted, triggers.ordinary_samples(dirty)).max(axis=1).mean()
    assert len(triggers.ordinary_samples(dirty)) == IMAGES
    assert second == f"| 9 | 2 | {near:.3f} | {member:.3f} | {chance:.3f} |"
    assert near < 0.999
    alone = cosine(np.round(clean.drawn.mean(axis=1)).astype(np.uint8), clean.members).max(axis=1).mean()
    assert first == f"| 9 | 0 | - | {alone:.3f} | - |"


def test_what_the_detector_finds_is_counted_by_groups():
    clean, dirty = made(DIGITS, 0), made([*DIGITS, 1, 2, 3], 3)
    single, open_ = (made([*DIGITS[:9], a], 0, seed=6, copies=[5] * 9 + [1]) for a in (2, 20))
    _, _, first, second = triggers.detection([clean, dirty]).splitlines()
    assert first == "| 9 | 0 | - | 0 of 10 | - | 0 of 1 | 0 of 1 | - | - |"
    assert second.startswith("| 9 | 3 | 3 of 3 | 0 of 10 | - | 1 of 1 | 0 of 1 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to")
    (row,) = triggers.false_alarms([clean, single, open_]).splitlines()[2:]
    low, high = stats.binomtest(1, 3).proportion_ci(method="wilson")
    none = stats.binomtest(0, 3).proportion_ci(method="wilson")
    some = f"1 of 3 ({low:.0%} to {high:.0%}) | 0 of 3 (0% to {none.high:.0%})"
    assert row == f"| 9 | {some} | 1 of 3 | 0 of 28 | 1 of 2 |"


def test_what_is_of_one_seed_is_resampled_together():
    """Of two seeds the four draws are known; more labels of the same seeds tell no more."""
    models = [made(DIGITS, 0, seed=seed) for seed in (5, 6)]
    text = triggers.over_seeds(models, lambda some: float(np.mean([one.seed for one in some])))
    low, high = np.quantile([5, 5.5, 5.5, 6], [0.025, 0.975])
    assert text == f"5.50 ({low:.2f} to {high:.2f})"
    pairs = [made([*DIGITS, 20, a], 2, seed=seed) for seed, a in enumerate((29, 33, 41, 50))]
    many = [
        dataclasses.replace(
            one,
            drawn=np.concatenate([one.drawn[:10], *[one.drawn[10:]] * 7]),
            copies=np.concatenate([one.copies[:10], *[one.copies[10:]] * 7]),
        )
        for one in pairs
    ]

    def auc(some):
        variances = triggers.variances
        return trigger_rules.auc(*(triggers.pooled(some, variances, group) for group in ("planted", "ordinary")))

    assert triggers.over_seeds(pairs, auc) == triggers.over_seeds(many, auc)


def test_the_curve_by_hand_and_its_area():
    """Positives 1 and 3, negatives 2 and 4: of the four pairs, three are in order."""
    low, high = np.asarray([1.0, 3.0]), np.asarray([2.0, 4.0])
    false, true = triggers.curve(low, high)
    assert (false.tolist(), true.tolist()) == ([0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1])
    assert np.trapezoid(true, false) == trigger_rules.auc(low, high) == 0.75
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 5, 40).astype(float), rng.integers(1, 6, 30).astype(float)  # with ties
    assert np.trapezoid(*triggers.curve(low, high)[::-1]) == pytest.approx(trigger_rules.auc(low, high))


def test_a_figure_is_drawn(tmp_path):
    found = [made([*DIGITS, *[2] * plants], plants, seed=seed) for seed in (5, 6) for plants in (0, 2)]
    triggers.figure(found, tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 10_000


def test_statistics_by_hand():
    """Pairs of one sign are 0 apart, the others 2 a: 64 of 120."""
    one = made([*DIGITS, 4], 1)
    found = {name: np.exp(values) for name, values in trigger_rules.statistics(one).items()}
    assert found["variance"] == pytest.approx([variance(a) for a in [*DIGITS, 4]])
    assert found["median pair"] == pytest.approx([2 * (a * LEVEL) ** 2 for a in [*DIGITS, 4]])
    ratio = [64 / 120 * 2 * a * LEVEL / np.sqrt(trigger_rules.LEAST) for a in [*DIGITS, 4]]
    assert found["mean pair over nearest pair"] == pytest.approx(ratio, rel=1e-3)
    means = one.drawn.astype(float).mean(axis=1) * LEVEL
    apart = np.square(means[:, None] - means[None]).mean(axis=(2, 3, 4)) + np.diag([np.inf] * len(means))
    nearest = apart.min(axis=1)
    expected = [variance(a) for a in [*DIGITS, 4]] / nearest
    assert found["variance over next label's distance"] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "freedom"), [("A", np.inf), ("B", np.inf), ("C", trigger_rules.FREEDOM)])
def test_rules_raise_the_stated_false_alarms_under_their_law(name, freedom):
    """Wide laws, so that the fall is no limit."""
    rng = np.random.default_rng(0)
    (rule,) = (rule for title, rule in trigger_rules.RULES.items() if title.startswith(name))
    draws = 5 * (rng.standard_normal((3000, 12)) if np.isinf(freedom) else rng.standard_t(freedom, (3000, 12)))
    alarms = sum(rule(logs, 1.0)[0].any() for logs in draws)
    low, high = stats.binom(3000, trigger_rules.RATE).ppf([1e-4, 1 - 1e-4])
    assert low <= alarms <= high


def test_the_choice_is_that_of_the_rule_that_was_written_down():
    """A digit whose spread is above a third of the others, and triggers far below: without a law c is 3, then 4."""
    digits = [58, 58, 59, 59, 60, 60, 61, 61, 62]
    models = [made([*digits, 37, *[2] * plants], plants, seed=seed) for seed in (1, 2) for plants in (0, 4)]
    rule, fall, table = trigger_rules.chosen_rule(models, "variance")
    rows = {row.split("|")[1].strip()[0]: row for row in table.splitlines()[2:]}
    assert rows["D"] == "| D: no law | 3 | 0 | 0 | 8 | 4 | 8 |"
    assert rows["A"].startswith("| A: from the median | ")
    assert (rule[0], fall in trigger_rules.FALLS) == ("A", True)  # the first of equal ones
    statistic, _ = trigger_rules.chosen_statistic(models)
    assert statistic == "variance"
    score, _ = trigger_rules.chosen_score(models, statistic, rule, fall)
    assert score == "the rule's score over its limit"
    assert trigger_rules.choice(models).endswith(f"Chosen: variance; {rule}, c = {fall:g}; {score}.")
