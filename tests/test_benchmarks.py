"""What the benchmarks count, on cases that one can count by hand."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import allocation
import defences
import extraction_cost
import guided_law
import knn_bias
import made_results
import membership
import mode_controls
import modes_left
import seeds
import theorem

from side_jax.memorization.basins import Basins
from side_jax.memorization.membership import attack_quality
from side_jax.settings import Model, Settings, Train


def found(matched, nearest, seconds=2.0):
    arrays = {"matched": np.asarray(matched, bool), "nearest": np.asarray(nearest)}
    return arrays | {"heldout_matched": arrays["matched"] & False, "seconds_per_image": np.float64(seconds)}


def test_seconds_to_a_number_of_members():
    one = found([0, 1, 1, 0, 1], [9, 3, 3, 1, 7])
    assert [extraction_cost.seconds_to(one, n) for n in range(4)] == [0.0, 4.0, 10.0, np.inf]
    assert extraction_cost.sooner([one], [found([1, 0, 0, 0, 1], [4, 9, 9, 9, 5], 8.0)]) == "4.00x"
    assert extraction_cost.sooner([one], [found([1, 1, 1, 0, 0], [4, 5, 6, 9, 9])]) == "never"


def test_the_table_compares_with_the_papers_best_scale():
    paper, ours = found([1, 0, 0, 0], [1, 0, 0, 0], 4.0), found([1, 1, 0, 0], [1, 2, 0, 0], 1.0)
    results = {(extraction_cost.PAPER, 3.0): [found([0] * 4, [0] * 4)], (extraction_cost.PAPER, 10.0): [paper]}
    lines = extraction_cost.table(results | {("ddim-5-trailing-all", 10.0): [ours]}).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    # 2 members of 4 images of a second each, against 1 of 4 of 4 seconds; its first member 4 times sooner.
    assert [cells[0], cells[2], cells[-3], cells[-2], cells[-1]] == [
        "ddim-5-trailing-all",
        "50.00",
        "0.50",
        "8.00x",
        "4.00x",
    ]


def test_members_called_stand_beside_held_out_images_called():
    """The threshold of 10% is the first of the nine that calibrate, 1.0: half of the members are below, one of five."""
    heldout, calibrates = np.append(np.arange(1.0, 10), [0.5, 20, 21, 22, 23]), np.arange(14) < 9
    one = attack_quality(np.asarray([0.0, 0.1, 5, 6]), heldout, calibrates, (0.1, 0.01))
    head, _, row, _, note = membership.table({"s": {"timestep": 100, "loss": one}}).splitlines()
    assert "members called at 10% | held-out images called | members called at 1% |" in head
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    # Of 20 pairs: 0.0 and 0.1 are lower than all 5 held-out images that evaluate, 5 and 6 than the 4 above 0.5.
    assert cells[:3] == ["s", "loss", f"{one['auc']:.3f} ({one['auc_ci'][0]:.3f} to {one['auc_ci'][1]:.3f})"]
    assert one["auc"] == 18 / 20
    assert [cells[3][:6], *cells[4:]] == ["2 of 4", "1 of 5 (20.00%)", "-", "-"]
    assert note == "-: a rate of 0.01 needs 99 calibration images, and there are 9."


def test_near_duplicates_are_the_other_images_within_the_distance():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (600, 4, 4, 1), dtype=np.uint8)
    images[[7, 599]] = images[300]
    images[599, 0, 0, 0] ^= 1
    near = allocation.near_duplicates(images, 0.15)
    assert {i: list(others) for i, others in enumerate(near) if len(others)} == {
        7: [300, 599],
        300: [7, 599],
        599: [7, 300],
    }


@pytest.mark.parametrize("adaptive", [False, True])
def test_evidence_draws_more_from_the_cluster_with_near_duplicates(adaptive):
    labels, nobody = np.repeat([0, 1], 400), np.zeros(0, int)
    near = [np.asarray([i ^ 1]) if i < 400 else nobody for i in range(800)]
    drawn = allocation.draw(labels, near, 400, adaptive, 0)
    assert len(np.unique(drawn)) == 400
    share = (labels[drawn] == 0).mean()
    assert share > 0.7 if adaptive else 0.4 < share < 0.6


def test_a_recipe_may_end_in_mode_seeking():
    plain, sought = (extraction_cost.Recipe(name=f"ddim-20-trailing-none{end}") for end in ("", "+modes-0.28x5"))
    assert (plain.rounds, sought.rounds) == (None, (0.28, 5))
    assert plain.unguided
    assert sought.unguided
    settings = sought.apply(Settings())
    assert settings == plain.apply(Settings())
    assert settings.guided_sampler.num_steps == 20
    guided = extraction_cost.Recipe(name="ddim-10-trailing-100-899+modes-0.1x3")
    assert not guided.unguided
    assert guided.apply(Settings()).extract.guidance_interval == (100, 899)


def test_seeds_are_tabled_by_what_counts_as_a_match():
    """Farther bands of the same metric have rows of their own, which are not meant."""
    rows = []
    for attack, scale, ams in (("unconditional", 0.0, 0.01), ("side", 10.0, 0.03)):
        rows.append(made_results.row(attack, scale, ams=ams, unique=2))
        rows.append(made_results.row(attack, scale, ams=0.9, unique=50, level="low"))
    lines = seeds.table([made_results.results(rows)] * 2, "rmse").splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| unconditional | 1.00, 1.00 | 1.00 |")
    assert "| side, scale 10 | 3.00, 3.00 | 3.00 | 3.00x | 2, 2 |" in lines[3]


def test_differences_are_paired_by_seed():
    """5 and 9 less 4 and 4 are 1 and 5: mean 3, standard error 2, and Student's factor of one degree is 12.706."""
    both = [(4, 5), (4, 9)]
    results = [
        made_results.results([made_results.row("unconditional", unique=a), made_results.row("side", 10.0, unique=b)])
        for a, b in both
    ]
    *_, plain, side = seeds.differences(results, "rmse").splitlines()
    assert plain == "| unconditional | 0, 0 | 0.0 (0.0 to 0.0) |"
    assert side == "| side, scale 10 | 1, 5 | 3.0 (-22.4 to 28.4) |"


def test_seeds_are_compared_at_equal_calls(tmp_path):
    """Mode seeking took 40 calls an image, plain sampling 20: its 50 first images cost what all 100 of the other do."""
    seeking = {"start": "unconditional", "noise_level": 0.1, "rounds": 20, "network_calls": 40}
    plain = {"network_calls": 20}
    rows = [made_results.row("unconditional", **plain), made_results.row("modes", **seeking, unique=30)]
    curves = [
        made_results.rarefaction("unconditional", **plain, expected=(0.5, 10.0)),
        made_results.rarefaction("modes", **seeking, sizes=(1, 50, 100), expected=(1.0, 22.0, 30.0)),
    ]
    result = made_results.results(rows, rarefaction=tuple(curves))
    head, _, first, second = seeds.table([result] * 2, "rmse").splitlines()
    assert "| calls | members at equal calls | against unconditional |" in head
    assert first.endswith("| 20 | 10.0 | 1.00x |")
    assert second.startswith("| modes from unconditional, noise 0.1, 20 rounds |")
    assert second.endswith("| 40 | 22.0 | 2.20x |")
    head, _, first, second = seeds.summary([result] * 2, [{}], 0).splitlines()
    assert head == "| run | calls | matched (AMS), % | members | members at 2,000 calls | held-out matched, % |"
    assert first.startswith("| unconditional | 20 | ")
    assert "| 30.0 (" in second
    assert "| 22.0 (2.20x) |" in second
    names = ["unconditional", "modes from unconditional, noise 0.1, 20 rounds"]
    early = [dict(zip(names, counts, strict=True)) for counts in ((1, 7), (2, 9))]
    head, _, _, second = seeds.summary([result] * 2, early, 16).splitlines()
    assert "| members of the first 16 images, each seed |" in head
    assert "| 7, 9 |" in second
    seeds.figure([result] * 2, "rmse", tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 800


def test_members_of_the_first_images_are_counted_once(tmp_path):
    (tmp_path / "evaluate").mkdir()
    rows = ["run,attack,index,rmse_member_match,rmse_member_id"]
    rows += [f"side_10,side,{i},{match},{member}" for i, (match, member) in enumerate([(1, 5), (1, 5), (0, 6), (1, 7)])]
    (tmp_path / "evaluate" / "matches.csv").write_text("\n".join(rows) + "\n")
    result = made_results.results([made_results.row("side", 10.0)])
    assert seeds.among_first(result, tmp_path, 3) == {"side, scale 10": 1}
    assert seeds.among_first(result, tmp_path, 4) == {"side, scale 10": 2}


@pytest.mark.parametrize("law", knn_bias.LAWS)
def test_the_bias_of_neighbours_is_measured_against_the_truth(law):
    """Which exact densities at draws of q give, too; and both estimators are near it in two dimensions."""
    pair = knn_bias.Pair(law, 2)
    x = pair.draw(np.random.default_rng(0), 2000)
    terms = pair.log_q(x) - stats.norm.logpdf(x, 0, pair.scale).sum(axis=1)
    assert abs(terms.mean() - pair.truth()) < 4 * terms.std() / 2000**0.5 + 1e-9
    found = knn_bias.measure(pair, 2000, 2000, [1], 2)
    assert found.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(found[..., 0], pair.truth(), atol=0.25)


def labelled(seed, kind, difference, ams, unique):
    """A row of a labelled DPM; the unlabelled one has difference 0."""
    other = {
        "labels": 10,
        "error": 0.5,
        "mixture": difference + 2,
        "own": 1.0,
        "divergence": 50 + difference,
        "free_ams": 0.01,
        "free_unique": 9,
    }
    return theorem.Row(seed=seed, kind=kind, difference=difference, ams=ams, unique=unique, **other)


def test_the_theorems_table_has_means_over_seeds():
    rows = [labelled(3, "true", -4.0, 0.02, 10), labelled(4, "true", -8.0, 0.04, 20)]
    rows += [labelled(seed, kind, 0.0, 0.01, 8) for seed in (3, 4) for kind in ("none", *theorem.KINDS[:-1])]
    line = theorem.table(rows, 0.05).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:3] == ["true", "10", "44.0 (2.0)"]
    assert cells[3:5] == ["-4.0 (0.5), -8.0 (0.5)", "-6.0 (2.0)"]
    assert cells[5] == "-6.0 (2.0)"  # single has 0.0
    assert cells[6] == "-4.0 (2.0)"
    assert cells[8:10] == ["3.00 (1.00)", "15.0 (5.0)"]


def test_rank_correlation_of_divergence_and_extraction():
    """The more negative the difference the higher the AMS, within each seed and over all; members the other way."""
    rows = [labelled(seed, "true", -float(i), 0.01 * i, -i) for seed in (3, 4) for i in range(5)]
    lines = theorem.correlations(rows).splitlines()
    assert lines[0].startswith("difference and ams: -1.00 over 10 runs")
    assert lines[0].endswith("of each seed -1.00, -1.00")
    assert lines[1].startswith("difference and unique: +1.00")


def test_the_guided_laws_table_is_paired_by_cluster():
    first = guided_law.Found(scale=0, divergence=np.asarray([9.0, 3]), matched=np.zeros(2), on_target=np.zeros(2))
    then = guided_law.Found(
        scale=10, divergence=np.asarray([7.0, 1]), matched=np.asarray([0.2, 0.4]), on_target=np.asarray([0.1, 0.1])
    )
    lines = guided_law.table([first, then], 0.15).splitlines()
    cells = [cell.strip() for cell in lines[5].split("|")[1:-1]]
    assert cells == ["10", "4.00 (3.00)", "-2.00 (0.00)", "30.0 (10.0)", "10.0 (0.0)"]
    assert "`matched` over the scales: -1.00 of the means; of each cluster -1.00, -1.00" in lines[-3]


def test_what_images_come_back_as():
    """Of four members: itself, another member, a held-out image, nothing. References 0 to 3 are members, 4 to 7 not."""
    nearest, matched = np.asarray([0, 2, 6, 3]), np.asarray([True, True, True, False])
    found = mode_controls.kept(nearest, matched, np.arange(4), np.arange(8) < 4)
    assert (found.itself, found.own_side, found.other_side) == (25, 25, 25)


def test_predicted_modes_stand_beside_those_that_all_starts_reach():
    """Ten starts in basins of 4, 2, 2, 1 and 1 images; all twenty reach seven modes, and four of five members."""
    first, every = (
        Basins(centre=np.arange(len(size)), size=np.asarray(size), label=np.zeros(sum(size), int))
        for size in ([4, 2, 2, 1, 1], [8, 4, 3, 2, 1, 1, 1])
    )
    values = modes_left.row(first, every, (np.asarray([3, 2, 0, 0, 0]), np.asarray([6, 4, 1, 1, 0])), 10, 2)
    assert values[:3] == [10, 5, 3]
    assert 5 < values[3] < 7
    assert values[4:] == [7, 2, 2.0, 4]


def test_defences_are_compared_at_the_first_step_of_equal_quality():
    def at(step, frechet):
        rest = dict.fromkeys(("plain_ams", "plain_members", "modes_ams", "modes_members", "heldout_ams"), 0.0)
        return defences.Measured(step=step, frechet=frechet, **rest)

    course = [at(50, 9.0), at(100, 5.0), at(150, 4.0), at(200, 6.0)]
    assert defences.at_quality(course, 5.5).step == 100
    assert defences.at_quality(course, 3.0).step == 150


@pytest.mark.slow
def test_private_training_takes_the_gradient_of_each_image_alone(monkeypatch):
    """What is clipped is an image's own gradient: the others of its batch do not change it."""
    small = Model(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    settings = dataclasses.replace(Settings(), train=Train(num_steps=1), model=small)
    images, seen = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8), []

    def recorded(clip, noise, key):
        inner = aggregate(clip, noise, key=key)

        def update(updates, state, params=None):
            jax.debug.callback(
                lambda *leaves: seen.append([np.array(leaf) for leaf in leaves]), *jax.tree.leaves(updates)
            )
            return inner.update(updates, state, params)

        return optax.GradientTransformation(inner.init, update)

    aggregate = defences.differentially_private_aggregate
    monkeypatch.setattr(defences, "differentially_private_aggregate", recorded)
    with jax.numpy_dtype_promotion("standard"):
        for batch in (images, images[[0, 2, 1]]):
            defences.train_privately(settings, batch, 0.0, lambda *_: True, 1)
    first, second = ([leaf[0] for leaf in leaves] for leaves in seen)
    assert sum(np.abs(leaf).sum() for leaf in first) > 0
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
