"""The settings reference: every setting is on it, with its default and a meaning that its comment gives."""

import dataclasses

import pytest

from side_jax.settings import ClassifierFit, Data, Settings, Train, reference
from side_jax.settings.mixtures import Theory

SECTIONS = {field.name: field.type for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.type)}
CLASSES = {"": Settings, **SECTIONS, "theory": Theory}


@pytest.mark.parametrize("section", CLASSES)
def test_every_setting_has_a_meaning(section):
    meanings = reference.meanings(CLASSES[section])
    for field in dataclasses.fields(CLASSES[section]):
        if not dataclasses.is_dataclass(field.type):
            assert len(meanings.get(field.name, "")) > 5, field.name


def test_a_comment_stands_on_the_line_or_above_it():
    found = reference.meanings(Data)
    assert found["image_width"].startswith("width in pixels where it is not the height")
    assert found["num_heldout"].startswith("Number of images that the model never sees")
    assert found["num_heldout"].endswith("all of them calibrate thresholds.")
    assert found["split_by"].startswith('"image", or "identity"')


def test_inherited_settings_have_their_comments():
    assert reference.meanings(Train)["num_steps"] == reference.meanings(ClassifierFit)["num_steps"]
    assert "horizontal_flip" in reference.meanings(Train)
    assert "horizontal_flip" not in reference.meanings(ClassifierFit)


def test_the_meaning_of_a_made_field_is_in_its_metadata():
    def field():
        return dataclasses.field(default=1, metadata={"meaning": "one more"})

    base = dataclasses.make_dataclass("Base", [("extra", int, field())], frozen=True, kw_only=True)
    both = dataclasses.make_dataclass("Both", [("more", int, field())], bases=(base, Data), frozen=True, kw_only=True)
    found = reference.meanings(both)
    assert (found["extra"], found["more"]) == ("one more", "one more")
    assert found["image_width"].startswith("width in pixels where it is not the height")


def test_the_page():
    page = reference.markdown()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    count = sum(
        not dataclasses.is_dataclass(field.type) for cls in CLASSES.values() for field in dataclasses.fields(cls)
    )
    assert len(rows) == count
    for row in rows:
        assert row.replace("\\|", "").count("|") == 5, row
    assert (
        "| `data.channels` | int | `1` | 1 (grey), 3 (colour), or as many as the arrays of an NPZ or NPY have |" in page
    )
    assert "| `data.path` | path | `''` | " in page
    assert "| `extract.guidance_scales` | tuple of float | `(1.0, 3.0, 10.0, 30.0)` | " in page
    assert "\n## Settings of side_jax.theory\n" in page
