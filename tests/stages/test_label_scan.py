"""The scan of a conditional model's labels: what it draws, what it writes, and where the report says it."""

import csv
import dataclasses
import json
import shutil

import jsonschema
import numpy as np
import pytest
import runs
from PIL import Image
from scipy import stats

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.measure import records
from side_jax.measure.target_scores import TargetScores
from side_jax.pipeline.saved_config import saved_config
from side_jax.report import alike_text
from side_jax.stages import label_scan, stage_inputs, stage_table

LABELS, PLANTED = 12, 5


def settings(labels=LABELS, *, private=False, **evaluate):
    config = default_config()
    config.condition.update({"labels": "random", "num_labels": labels})
    config.evaluate.update({"label_images": 16} | evaluate)
    config.report.private = private
    return from_config(config)


class Made:
    """A target whose images of every label are noise, but those of one label, which are all the same."""

    def __init__(self):
        self.asked = []

    def drawn(self, labels, count):
        for label in labels.tolist():
            self.asked.append(label)
            rng = np.random.default_rng(label)
            one = rng.integers(0, 256, (1, 8, 8, 1), np.uint8)
            yield one.repeat(count, axis=0) if label == PLANTED else rng.integers(0, 256, (count, 8, 8, 1), np.uint8)


def table(directory):
    with (directory / label_scan.TABLE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_planted_label_is_first_in_table_and_picture(tmp_path):
    found = label_scan.write(settings(), tmp_path, Made())
    assert [one.label for one in found.flagged] == [PLANTED]
    assert (found.labels, found.scanned, found.images, found.undecided) == (LABELS, LABELS, 16, "")
    rows = table(tmp_path)
    assert [row["flagged"] for row in rows] == ["1"] + ["0"] * (LABELS - 1)
    assert (rows[0]["label"], float(rows[0]["spread"]), float(rows[0]["variance"])) == (str(PLANTED), 0.0, 0.0)
    assert sorted(int(row["label"]) for row in rows) == list(range(LABELS))
    spreads = [float(row["spread"]) for row in rows]
    assert spreads == sorted(spreads)
    assert [float(row["variance"]) for row in rows[1:]] == pytest.approx(spreads[1:], rel=0.1)
    assert found.ordinary == pytest.approx(stats.gmean(spreads[LABELS // 2 :]))
    assert [float(row["fall"]) for row in rows[1:]] == pytest.approx(found.ordinary / np.asarray(spreads[1:]), rel=1e-4)
    assert float(rows[0]["fall"]) == pytest.approx(found.greatest_fall) == pytest.approx(found.flagged[0].fall)
    assert spreads[1:] == pytest.approx([1 / 3] * (LABELS - 1), rel=0.2)  # the variance of uniform pixels in [-1, 1]
    with Image.open(tmp_path / label_scan.SHEET) as picture:
        pixels = np.asarray(picture)
    (one,) = Made().drawn(np.asarray([PLANTED]), 1)
    np.testing.assert_array_equal(pixels[2:50:6, 2:50:6], one[0, ..., 0])  # enlarged 6 times, after a gap of 2


def test_a_private_picture_is_blurred(tmp_path):
    (one,) = Made().drawn(np.asarray([PLANTED]), 1)
    label_scan.write(settings(private=True), tmp_path, Made())
    with Image.open(tmp_path / label_scan.SHEET) as picture:
        shown = np.asarray(picture)[2:50:6, 2:50:6].astype(int)
    assert np.abs(np.diff(shown, axis=1)).mean() < np.abs(np.diff(one[0, ..., 0].astype(int), axis=1)).mean() / 2


def test_too_few_labels_decide_nothing(tmp_path):
    found = label_scan.write(settings(7), tmp_path, Made())
    assert (found.ordinary, found.greatest_fall, found.flagged) == (None, None, ())
    assert "7 labels are too few" in found.undecided
    assert {(row["fall"], row["flagged"]) for row in table(tmp_path)} == {("", "")}
    assert alike_text.sentence(found) == (
        "Whether any label looks planted is not decided: 7 labels are too few to know what is ordinary, 8 are needed."
    )


def test_of_many_labels_some_are_scanned(tmp_path):
    target = Made()
    found = label_scan.write(settings(max_labels=9), tmp_path, target)
    assert (found.scanned, len(set(target.asked))) == (9, 9)
    assert target.asked == sorted(target.asked)
    assert set(target.asked) < set(range(LABELS))
    assert label_scan.scanned(settings(max_labels=9)).tolist() == target.asked
    assert label_scan.scanned(dataclasses.replace(settings(max_labels=9), seed=1)).tolist() != target.asked
    assert "9 labels scanned (the model has 12)" in alike_text.sentence(found)


def scan(flagged):
    alike = tuple(records.AlikeLabel(label=label, spread=0.001, fall=200.0) for label in flagged)
    known = {"labels": 40, "scanned": 40, "images": 16, "ordinary": 0.2, "greatest_fall": 200.0 if flagged else 2.5}
    return records.LabelSpread(**known, flagged=alike)


def test_sentences():
    """A finding is never more than worth a look, and no finding never says that nothing is planted."""
    none, one, many = (alike_text.sentence(scan(range(count))) for count in (0, 1, 12))
    assert none == (
        "No label stands out: of the 40 labels scanned, none has images that are abnormally alike (for the most alike, "
        "the squared distance of two of its 16 images is typically 2.5 times smaller than for ordinary labels). A "
        "planted label that is hardly memorised does not stand out either."
    )
    assert one == (
        "One label is worth a look (planted, or a single memorised image): of the 40 labels scanned, the images of "
        "label 0 are abnormally alike (for the most alike, the squared distance of two of its 16 images is typically "
        "200 times smaller than for ordinary labels; 8 are needed). How often that happens without plants depends on "
        "the classes."
    )
    assert many.startswith("12 labels are worth a look (planted, or a single memorised image each)")
    assert "labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more are" in many


def test_a_label_that_is_not_alike_enough_decides_nothing(tmp_path):
    class Narrow(Made):
        def drawn(self, labels, count):
            for label, images in zip(labels.tolist(), super().drawn(labels, count), strict=True):
                rng = np.random.default_rng(label)
                yield rng.integers(75, 181, images.shape, np.uint8) if label == PLANTED else images

    found = label_scan.write(settings(), tmp_path, Narrow())
    assert 4 < found.greatest_fall < 8
    assert found.flagged == ()
    assert alike_text.sentence(found).startswith("Whether any label looks planted is not decided: the squared distance")
    assert {row["flagged"] for row in table(tmp_path)} == {""}


@pytest.fixture(scope="module")
def conditional():
    """A tiny run on random labels; read it, never write to it."""
    return runs.finished("conditional")


def test_it_draws_what_each_label_is(conditional):
    """As guidance by the label does at scale 1, from the same noise; whatever the other labels."""
    own = from_config(saved_config(conditional))
    target = TargetScores(own, stage_inputs.load_target(own, conditional))
    labels, count = np.asarray([0, 2]), 3
    drawn = list(target.drawn(labels, count))
    assert [images.shape for images in drawn] == [(3, *builders.image_shape(own))] * 2
    (alone,) = target.drawn(np.asarray([2]), count)
    np.testing.assert_array_equal(alone, drawn[1])
    guided = builders.build_generator(own, own_labels=True)
    index, every = np.arange(9), np.repeat(np.arange(3), 3).astype(np.int32)
    params = {"dpm": stage_inputs.load_target(own, conditional).trees["ema"]}
    expected = guided(params, target._base("label spread"), index, every, 1.0)
    for label, images in zip(labels, drawn, strict=True):
        apart = np.abs(images.astype(int) - expected[every == label])
        assert apart.max() <= 1
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 1


def test_an_audit_and_an_attacker_scan_the_labels(conditional, tmp_path):
    from side_jax import evaluate

    workdir = shutil.copytree(conditional, tmp_path / "run")
    before = stage_table.evaluation_unit(from_config(saved_config(workdir)), workdir).fingerprint
    argv = runs.arguments(workdir, **runs.CONDITIONAL, evaluate__label_images=16)
    assert runs.run(argv) == 0
    assert runs.run([f"--workdir={workdir}"], evaluate.SUSPECTS) == 0
    results = json.loads((workdir / "evaluate" / "results.json").read_text())
    jsonschema.validate(results, records.schema())
    assert results["label_spread"]["undecided"].startswith("3 labels are too few")
    assert (results["label_spread"]["images"], results["label_spread"]["flagged"]) == (16, [])
    page = " ".join((workdir / "report" / "index.html").read_text().split())
    assert "Whether any label looks planted is not decided: 3 labels are too few" in page
    assert "Of 3 labels, nothing is decided" in page
    assert (workdir / "report" / "labels.png").exists()
    for name in (label_scan.TABLE, label_scan.SHEET):
        assert (workdir / "suspects" / name).read_bytes() == (workdir / "evaluate" / name).read_bytes()
    own = from_config(saved_config(workdir))
    assert stage_table.evaluation_unit(own, workdir).fingerprint != before
    for unit in (stage_table.evaluation_unit(own, workdir), stage_table.suspects_unit(own, workdir)):
        assert unit.done()
        (unit.directory / label_scan.TABLE).unlink()
        assert not unit.done()


def test_without_a_scan_nothing_depends_on_its_settings(conditional):
    own = from_config(saved_config(conditional))
    other = dataclasses.replace(own, evaluate=dataclasses.replace(own.evaluate, max_labels=50))
    for unit in (stage_table.evaluation_unit, stage_table.suspects_unit):
        assert unit(own, conditional).fingerprint == unit(other, conditional).fingerprint
