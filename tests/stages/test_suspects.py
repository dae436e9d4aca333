"""Suspects: planted duplicates come first, by evidence that owes nothing to the data; and what benchmarks count."""

import csv
import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from side_jax import builders, evaluate
from side_jax.attacks.table import ATTACKS
from side_jax.config import from_config
from side_jax.data import datasets
from side_jax.diffusion.pixel_range import to_float
from side_jax.models.classifier import log_probs
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.stages import stage_inputs, stage_table, suspects
from side_jax.targets.diffusers_unet import to_diffusers
from side_jax.workdir import files

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import budget
import suspects as benchmark

KINDS = ["clique", "variance", "score_norm", "confidence"]
BLIND = {"unconditional", "side", "side_random", "side_shuffled", "modes", "black_box", "extrapolate", "side_lora"}
BLIND |= {"black_box_modes"}


def rank(workdir, **overrides):
    """Runs the stage alone, with what the workdir holds; returns the exit code."""
    argv = [f"--workdir={workdir}"]
    return runs.run(runs.arguments(workdir, **overrides) if overrides else argv, evaluate.SUSPECTS)


def read(workdir):
    """{run: its rows, in the order of the file}."""
    found = {}
    with open(workdir / "suspects" / "suspects.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["attack"], float(row["guidance_scale"])), []).append(row)
    return found


def drawn(workdir, name):
    """The images of a run and their labels."""
    settings = from_config(saved_config(workdir))
    return shards.read(stage_table.extracted_shards(settings, unit_of(workdir, name)))


def unit_of(workdir, name):
    """The unit of a run."""
    units = stage_table.extraction_units(from_config(saved_config(workdir)), workdir)
    return next(unit for run, unit in units if run.name == name)


def plant(workdir, name, images):
    """Puts images [64, 8, 8, 1] in the place of a run's."""
    for i, part in enumerate(np.split(images, 2)):
        path = workdir / "extract" / name / f"shard_{i:05d}.npz"
        files.write_npz(path, **(files.read_npz(path) | {"images": part}))
    runs.sign(unit_of(workdir, name))


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 8, 8, 1), np.uint8)


def refuse(*args, **kwargs):
    raise AssertionError("the data were read")


@pytest.fixture(scope="module")
def ranked():
    """A finished run with its suspects; read it, never write to it."""
    return runs.finished("ranked")


def test_every_image_of_a_blind_run_has_a_row(ranked):
    found = read(ranked)
    assert list(found) == [("unconditional", 0), ("side", 1), ("side", 10)]
    for (attack, scale), rows in found.items():
        assert list(rows[0]) == ["rank", "run", "attack", "guidance_scale", "index", "label", *KINDS]
        assert [int(row["rank"]) for row in rows] == list(range(1, 65))
        assert sorted(int(row["index"]) for row in rows) == list(range(64))
        made = drawn(ranked, attack + (f"_{scale:g}" if scale else ""))
        assert [int(row["label"]) for row in rows] == [made["label"][int(row["index"])] for row in rows]


def test_the_sheet_shows_the_first_of_each_run(ranked):
    """Each run begins a row; images of 8 pixels are shown at 48, with gaps of 2."""
    with Image.open(ranked / "suspects" / "suspects.png") as sheet:
        pixels = np.asarray(sheet)
    for i, ((attack, scale), rows) in enumerate(read(ranked).items()):
        images = drawn(ranked, attack + (f"_{scale:g}" if scale else ""))["images"]
        for place in (0, 1, 47):
            y, x = 2 + 50 * (2 * i + place // 24), 2 + 50 * (place % 24)
            shown = pixels[y : y + 48 : 6, x : x + 48 : 6]
            np.testing.assert_array_equal(shown, images[int(rows[place]["index"]), :, :, 0])


def test_the_rank_is_that_of_the_mean_of_the_four(ranked):
    """Counted pair by pair: half a place for each equal image."""
    for rows in read(ranked).values():
        mean = np.zeros(64)
        for kind, sign in zip(KINDS, (-1, 1, 1, -1), strict=True):
            value = sign * np.asarray([float(row[kind]) for row in rows])
            mean += (value[:, None] > value).sum(axis=1) + ((value[:, None] == value).sum(axis=1) + 1) / 2
        index = [int(row["index"]) for row in rows]
        assert [*zip(mean, index, strict=True)] == sorted(zip(mean, index, strict=True))
        assert len(set(mean)) > 32


def test_evidence_is_of_the_image_of_its_row(ranked):
    """The norm of the predicted noise and the classifier's certainty, computed afresh."""
    settings = from_config(saved_config(ranked))
    unet = builders.build_network(settings)
    dpm = stage_inputs.load_target(settings, ranked).trees["ema"]
    classifier, guide = stage_inputs.load_classifier(settings, ranked, ATTACKS["side"].classifier)
    x, t = to_float(drawn(ranked, "side_10")["images"]), np.zeros(64, np.int32)
    epsilon = np.asarray(jax.jit(unet.apply)({"params": dpm}, x, t + 10))  # a tenth of the timesteps
    log_share = np.asarray(jax.jit(functools.partial(log_probs, classifier))(guide["classifier"], x, t))
    for row in read(ranked)["side", 10]:
        i = int(row["index"])
        assert float(row["score_norm"]) == pytest.approx(np.sum(epsilon[i].astype(float) ** 4), rel=1e-3)
        assert float(row["confidence"]) == pytest.approx(np.exp(log_share[i].astype(float)).max(), rel=1e-4)
        assert float(row["variance"]) > 0


def test_ranks_by_hand():
    """Large cliques and certainty are suspicious, as are little variance and small norms; ties share their mean."""
    found = {
        "clique": np.asarray([1, 5, 5, 2]),  # ranks 4, 1.5, 1.5, 3
        "variance": np.asarray([0.1, 0.3, 0.2, 0.4]),  # 1, 3, 2, 4
        "score_norm": np.asarray([1.0, 2.0, 3.0, 4.0]),  # 1, 2, 3, 4
    }
    # The sums are 6, 6.5, 6.5 and 11; of the two that are equal, the lower index comes first.
    assert suspects.ranks(found).tolist() == [1, 2, 3, 4]
    found["confidence"] = np.asarray([0.2, 0.3, 0.9, 0.8])  # 4, 3, 1, 2: 10, 9.5, 7.5 and 13
    assert suspects.ranks(found).tolist() == [3, 2, 1, 4]


def test_clique_sizes_by_hand():
    """Three that are mutual near duplicates, a chain of three whose ends are not, and one alone."""
    level = np.asarray([0, 4, 8, 100, 112, 124, 250])  # an RMSE of 0.15 is 19 of them
    images = np.broadcast_to(level[:, None, None, None], (7, 4, 4, 1)).astype(np.uint8)
    assert suspects.clique_sizes(images, 0.15).tolist() == [3, 3, 3, 2, 2, 2, 1]


@pytest.mark.parametrize("attacks", [("unconditional", "side"), ("unconditional",)])
def test_planted_duplicates_come_first_with_a_surrogate_and_without(tmp_path, attacks):
    """Copies of a generated image, a little noised, among noise; and no run is another's near duplicate."""
    workdir = shutil.copytree(runs.finished("two_levels"), tmp_path / "run")
    images, places = noise(0), np.asarray([3, 8, 20, 21, 33, 40, 41, 50, 62, 63])
    copy = drawn(workdir, "unconditional")["images"][0].astype(int)
    images[places] = np.clip(copy + np.random.default_rng(1).integers(-3, 4, (10, 8, 8, 1)), 0, 255)
    images[5] = np.where(copy > 127, copy - 25, copy + 25)  # an RMSE of 0.196 from the copy, which is above 0.15
    plant(workdir, "unconditional", images)
    for name in ("side_1", "side_10"):  # of the same starting noise, and here the same images
        plant(workdir, name, noise(2))
    assert rank(workdir, **runs.TWO_LEVELS | {"extract__attacks": attacks}) == 0
    found = read(workdir)
    rows = [row for row in found.pop(("unconditional", 0)) if row["index"] != "5"]
    assert int(rows[0]["index"]) in places
    assert {int(row["index"]) for row in rows[20:]}.isdisjoint(places)  # the tiny model's own evidence is poor
    assert all(row["clique"] == ("10" if int(row["index"]) in places else "1") for row in rows)
    assert {row["clique"] for others in found.values() for row in others} == ({"1"} if found else set())
    assert len(found) == 2 * ("side" in attacks)
    assert ({row["confidence"] for row in rows} == {""}) == ("side" not in attacks)


def test_an_attacker_needs_neither_the_data_nor_the_split(ranked, workdir, monkeypatch, said):
    """To the same bytes; a second time there is nothing to do."""
    monkeypatch.setattr(datasets, "load", refuse)
    (workdir / "train" / "split.json").unlink()
    for name in ("synthesize", "label", "evaluate", "report", "surrogate/conditional", "extract/conditional_10"):
        shutil.rmtree(workdir / name)
    assert rank(workdir) == 0
    for name in ("suspects.csv", "suspects.png"):
        assert (workdir / "suspects" / name).read_bytes() == (ranked / "suspects" / name).read_bytes()
    assert rank(workdir) == 0
    assert "suspects: up to date, nothing to do." in said.messages


def test_the_flag(ranked, tmp_path, monkeypatch, capsys, said):
    workdir = shutil.copytree(ranked, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["side_jax", "--suspects", f"--workdir={workdir}"])
    with pytest.raises(SystemExit) as left:
        evaluate.main()
    assert left.value.code == 0
    assert "suspects: up to date, nothing to do." in said.messages
    assert (
        f"Suspects, the most suspicious of each run first: {workdir}/suspects/suspects.csv" in capsys.readouterr().out
    )


def test_a_foreign_model_whose_folder_and_data_are_gone(finished, tmp_path, monkeypatch):
    settings = from_config(saved_config(finished))
    unet = builders.build_network(settings)
    dpm = stage_inputs.load_target(settings, finished).trees["ema"]
    theirs, workdir = tmp_path / "theirs", tmp_path / "run"
    to_diffusers(theirs / "model", unet, dpm, builders.build_schedule(settings), image_size=8)
    (theirs / "model" / "unet").rename(theirs / "model" / "unet_ema")
    to_diffusers(theirs / "model", unet, jax.tree.map(np.zeros_like, dpm), settings.diffusion.make(), image_size=8)
    monkeypatch.setenv("HOME", str(theirs))
    for seed, name in enumerate(("seen", "unseen")):
        np.savez(theirs / f"{name}.npz", images=noise(seed))
    options = {"data__name": "npz", "data__path": theirs / "seen.npz", "data__heldout_from": theirs / "unseen.npz"}
    options |= {"target__path": "~/model", "extract__attacks": "('unconditional',)"}
    assert runs.run(runs.arguments(workdir, "train,extract", **options)) == 0
    weights = files.read_json(workdir / "train" / "manifest.json")["weights"]
    assert weights == ["unet_ema/diffusion_pytorch_model.safetensors"]
    shutil.rmtree(theirs)
    (workdir / "train" / "split.json").unlink()
    assert rank(workdir) == 0
    (rows,) = read(workdir).values()
    # The same model with the same seed, so the same images.
    np.testing.assert_array_equal(drawn(workdir, "unconditional")["images"], drawn(finished, "unconditional")["images"])
    assert len(rows) == 64


@pytest.mark.parametrize(
    ("lost", "stages"),
    [
        ("checkpoints/40", "train,suspects"),
        ("surrogate/side/checkpoints/30", "surrogate,suspects"),
        ("extract/side_10/manifest.json", "extract,suspects"),
    ],
)
def test_what_is_lacking_is_one_sentence(workdir, capsys, lost, stages):
    shutil.rmtree(workdir / lost) if (workdir / lost).is_dir() else (workdir / lost).unlink()
    assert rank(workdir) == 1
    error = capsys.readouterr().err
    assert f"run --stages={stages} instead." in error
    assert error.count("\n") == 1
    assert not (workdir / "suspects").exists()


def test_before_anything_is_drawn(tmp_path, capsys):
    assert rank(tmp_path / "run", seed=1) == 1
    assert "run --stages=train,surrogate,extract,suspects instead" in capsys.readouterr().err


def test_nothing_to_rank_is_one_sentence(workdir, capsys):
    assert rank(workdir, extract__attacks="('conditional',)") == 1
    assert "extract.attacks holds only conditional, but suspects are ranked" in capsys.readouterr().err


def test_a_lost_shard_is_one_sentence(workdir, capsys):
    (workdir / "extract" / "side_10" / "shard_00001.npz").unlink()
    assert rank(workdir) == 1
    assert "shard_00001.npz is missing; run the stage that writes it first." in capsys.readouterr().err
    assert not (workdir / "suspects" / "suspects.csv").exists()


def test_blind_runs_and_what_their_suspects_depend_on(finished):
    settings = from_config(saved_config(finished))

    def changed(section, **values):
        one = dataclasses.replace(getattr(settings, section), **values)
        return dataclasses.replace(settings, **{section: one})

    every = changed("extract", attacks=tuple(name for name, attack in ATTACKS.items() if not attack.own_labels))
    assert {run.attack for run, _ in stage_table.data_free_units(every, finished)} == BLIND
    conditional = changed("condition", labels="random", num_labels=10)
    own = dataclasses.replace(conditional, extract=dataclasses.replace(conditional.extract, attacks=tuple(ATTACKS)))
    assert {run.attack for run, _ in stage_table.data_free_units(own, finished)} == BLIND | {"conditional_model"}

    def fingerprint(of):
        return stage_table.suspects_unit(of, finished).fingerprint

    same = [changed("conditional", num_steps=11), changed("evaluate", normalized_l2_below=0.5), every]
    assert {fingerprint(one) for one in same[:2]} == {fingerprint(settings)}
    other = [changed("evaluate", rmse_below=0.1), changed("evaluate", membership_timestep=5), every]
    other += [changed("surrogate", num_steps=31), changed("extract", num_images=65), changed("train", num_steps=41)]
    assert len({fingerprint(one) for one in [settings, *other]}) == 7


# The benchmarks.


def test_precision_of_the_first_with_ties():
    right, suspicion = np.asarray([1, 0, 1, 0, 0], bool), np.asarray([5, 4, 2, 2, 1])
    # The third place is the third's or the fourth's, each half of the time.
    assert [benchmark.precision_of_first(right, suspicion, n) for n in (1, 2, 3, 4, 5)] == [1, 0.5, 0.5, 0.5, 0.4]
    assert benchmark.average_precision(right, suspicion) == pytest.approx((1 + 0.5) / 2)  # precision 1, then 2 of 4
    assert benchmark.average_precision(right & False, suspicion) == 0


def test_perfect_and_useless_evidence_in_the_table():
    right = np.arange(200) < 20
    one = {"right": right, "clique": right.astype(float), "variance": np.ones(200)}
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in benchmark.lines("r", one, 50)]
    assert rows[0] == ["r", "200", "10.00", "clique", "100.00 (100.00 to 100.00)", "10.00x", "100.0", "40.0", "20.0"]
    assert [rows[1][3], rows[1][4][:6], *rows[1][5:]] == ["variance", "10.00 ", "1.00x", "10.0", "10.0", "10.0"]
    low, high = (float(end) for end in rows[1][4].split("(")[1].rstrip(")").split(" to "))
    assert low < 10 < high


def test_suspects_are_joined_with_the_truth(ranked, tmp_path, monkeypatch, capsys):
    """Matches planted in matches.csv: of each run, the images with an index that 3 divides."""
    for name in ("evaluate", "suspects"):
        shutil.copytree(ranked / name, tmp_path / name)
    with open(tmp_path / "evaluate" / "matches.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for row in table:
        row["normalized_l2_member_match"] = int(int(row["index"]) % 3 == 0)
    with open(tmp_path / "evaluate" / "matches.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table[::-1])
    found, rows = benchmark.runs(tmp_path), read(ranked)
    named = {(attack + (f"_{scale:g}" if scale else ""), attack): (attack, scale) for attack, scale in rows}
    assert list(found) == list(named)
    for key, one in found.items():
        name = named[key]
        assert one["right"].tolist() == [int(row["index"]) % 3 == 0 for row in rows[name]]
        assert (np.diff(one["all together"]) < 0).all()  # the file is in the order of the rank
        for kind, sign in zip(KINDS, (1, -1, -1, 1), strict=True):
            value = [sign * float(row[kind]) for row in rows[name]]
            assert np.array_equal(
                np.unique(value, return_inverse=True)[1], np.unique(one[kind], return_inverse=True)[1]
            )
    whole = benchmark.pooled([found["side_1", "side"], found["side_10", "side"]])
    assert len(whole["right"]) == 128
    assert len(benchmark.table({"whole": whole}, 20).splitlines()) == 2 + 5
    monkeypatch.setattr(sys, "argv", ["suspects", "--workdir", str(tmp_path), "--resamples", "20"])
    benchmark.main()
    assert f"{tmp_path.name}: side_10" in capsys.readouterr().out
    benchmark.figure({"whole": whole}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def columns(members, matched):
    """The columns of matches.csv for one run."""
    return {
        "index": np.arange(len(members), dtype=float),
        "normalized_l2_member_id": np.asarray(members, float),
        "normalized_l2_member_match": np.asarray(matched, float),
        "rmse_member_id": np.zeros(len(members)),
        "rmse_member_match": np.zeros(len(members)),
    }


def test_counts_are_of_the_first_images_and_the_headline_metric():
    run = columns([7, 7, 3, 9, 7, 1], [1, 1, 0, 1, 1, 1])
    assert sorted(budget.counts(run, 4, 5)) == [0, 0, 0, 1, 2]
    assert sorted(budget.counts(run, 6, 5)) == [0, 0, 1, 1, 3]


def test_a_law_that_holds_is_predicted():
    """Matches drawn from members of one and the same probability, of which half are there: expected in closed form."""
    random, m, n = np.random.default_rng(0), 400, 1000
    member = random.integers(0, m, 10 * n)
    run = columns(member, random.random(10 * n) < 0.2)
    found = budget.outcomes("r", run, n, m, [2, 5, 10, 20])
    assert [one.factor for one in found] == [2, 5, 10]  # of 20 times there are no images
    for one in found:
        truth = m * (1 - (1 - 0.2 / m) ** (one.factor * n))
        assert one.found == pytest.approx(truth, abs=4 * (truth * (1 - truth / m)) ** 0.5 + 1)
        for name in ("fit", "chao"):
            assert abs(one.error(name)) < 0.12, (one.factor, name)
        assert one.richness.low <= m
    rows = budget.table(found).splitlines()
    assert rows[2].split("|")[1:6:3] == [" r ", " 2 "]
    assert [row.split("|")[1].strip() for row in budget.summary(found).splitlines()[2:]] == ["2", "5", "10"]


def test_nothing_found_has_no_error():
    (one,) = budget.outcomes("r", columns([0] * 20, [0] * 20), 10, 5, [2])
    assert (one.before, one.found, one.predicted) == (0, 0, {"fit": 0, "chao": 0, "good_toulmin": 0})
    assert budget.table([one]).splitlines()[2].count(" - |") == 3
    assert len(budget.summary([one]).splitlines()) == 2


def test_the_tables_of_a_run(finished, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["budget", "--workdir", str(finished), "--num-images", "32"])
    budget.main()
    results = json.loads((finished / "evaluate" / "results.json").read_text())["rows"]
    unique = {
        (row["attack"], row["guidance_scale"]): row["unique"]
        for row in results
        if (row["metric"], row["level"]) == ("normalized_l2", "high")
    }
    rows = [row.split("|") for row in capsys.readouterr().out.splitlines() if row.startswith(f"| {finished.name}: ")]
    assert [int(row[5]) for row in rows] == list(unique.values())  # twice 32 images are all
