"""results.json: its records, its file and its schema are one."""

import copy
import json

import jsonschema
import made_results
import numpy as np
import pytest
from msgspec import UNSET, structs

from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.workdir import files


@pytest.fixture
def results():
    """An audit of a model: of two runs, one compared with the other; nothing else was computed."""
    plain = made_results.row("unconditional")
    side = made_results.row("side", 10.0, p_more_images=0.25, p_more_members=0.5)
    target = records.Target(
        step=7, ema_sha256="0", parameters=9, denoising_loss_members=0.5, denoising_loss_heldout=0.75
    )
    return made_results.results(
        [plain, side], target=target, membership=None, divergence=None, surrogate=None, classifiers={}
    )


def test_the_schema_is_that_of_the_records():
    assert json.loads(records.SCHEMA.read_text()) == records.schema(), "run python -m side_jax.measure.records"
    jsonschema.Draft202012Validator.check_schema(records.schema())


def test_every_figure_of_a_row_is_explained():
    row = records.schema()["$defs"]["Row"]["properties"]
    assert [name for name, field in row.items() if "description" not in field] == ["metric"]
    assert row["metric"]["enum"][:2] == ["normalized_l2", "rmse"]


def test_what_is_written_is_read_again(results, tmp_path):
    path = tmp_path / "results.json"
    records.write(path, results)
    assert records.read(path) == results
    assert results.rows[0].p_more_images is UNSET
    jsonschema.validate(json.loads(path.read_text()), records.schema())


def test_the_file_names_what_was_not_computed_and_leaves_out_what_does_not_apply(results):
    value = records.to_json(results)
    assert value["membership"] == value["divergence"] == value["surrogate"] == value["classifiers"] == {}
    assert "sets" not in value
    assert "p_more_images" not in value["rows"][0]
    assert (value["rows"][1]["p_more_images"], value["rows"][0]["heldout_ams_at_most"]) == (0.25, 0.01)
    images_alone = records.to_json(made_results.results([made_results.row("samples")]))
    assert not {"membership", "divergence", "surrogate", "classifiers", "target"} & set(images_alone)


def test_numbers_of_numpy_are_written(results, tmp_path):
    row = structs.replace(results.rows[0], ams=np.float64(0.1), unique=np.int64(3))
    files.write_json(tmp_path / "a.json", records.to_json(structs.replace(results, rows=(row,))))
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert (rows[0]["ams"], rows[0]["unique"]) == (0.1, 3)


def test_the_sides_of_a_row_are_its_own():
    heldout = structs.replace(made_results.NOTHING, ams=0.25, unique=4, ums_ci=(0.5, 0.75))
    row = made_results.row("side", **records.both_sides(made_results.NOTHING, heldout))
    assert (row.members, row.heldout) == (made_results.NOTHING, heldout)
    assert (row.ams, row.heldout_ams, row.heldout_unique, row.heldout_ums_ci) == (0.0, 0.25, 4, (0.5, 0.75))


def _without(value, *path):
    del value[path[0]][0][path[1]]


DAMAGES = {
    "an unknown section": (lambda value: value.update(more=1), "unknown field `more`"),
    "an unknown key of a row": (lambda value: value["rows"][0].update(more=1), "unknown field `more`"),
    "a missing key of a row": (lambda value: _without(value, "rows", "ums"), "missing required field `ums`"),
    "a missing section": (lambda value: value.pop("thresholds"), "missing required field `thresholds`"),
    "no rows": (lambda value: value.update(rows=[]), "length >= 1"),
    "a rate above 1": (lambda value: value["rows"][0].update(ams=1.5), "<= 1.0 - at `$.rows[0].ams`"),
    "an interval of three": (lambda value: value["rows"][0].update(ams_ci=[0, 0, 0]), "`$.rows[0].ams_ci`"),
    "null for what is absent": (lambda value: value["rows"][1].update(p_more_images=None), "got `null`"),
    "half a section": (lambda value: value.update(membership={"timestep": 3}), "missing required field"),
    "an unknown setting of a metric": (lambda value: value["metrics"][0].update(more=1), "unknown field `more`"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_reader_and_schema_refuse_the_same(results, tmp_path, damage):
    change, words = DAMAGES[damage]
    value = copy.deepcopy(json.loads(json.dumps(records.to_json(results))))
    value["versions"]["side_jax"] = records.versions()["side_jax"]
    change(value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, records.schema())
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"results\.json is damaged") as raised:
        records.read(tmp_path / "results.json")
    assert words in str(raised.value)
    value["versions"]["side_jax"] = "9.8"
    (tmp_path / "results.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"results\.json is of side_jax 9\.8, and this is side_jax \d"):
        records.read(tmp_path / "results.json")
