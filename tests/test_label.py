"""Pseudo-labels on clusters that are known."""

import dataclasses

import numpy as np
import pytest

from side_jax.errors import InputError
from side_jax.settings import Label
from side_jax.stages.label import cohesion, pseudo_labels


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(spreads, n=40, d=6, seed=0):
    """One cloud of unit vectors around each axis, with its own spread."""
    rng = np.random.default_rng(seed)
    rows = [np.eye(d)[i] + spread * rng.normal(size=(n, d)) for i, spread in enumerate(spreads)]
    return unit(np.concatenate(rows)), np.repeat(np.arange(len(spreads)), n)


def test_cohesion_by_hand():
    """Two vectors at 60 degrees either side of their centroid: cosine 0.5; an empty cluster scores -1."""
    features = unit([[0.5, 3**0.5 / 2], [0.5, -(3**0.5) / 2], [0.0, 1.0]])
    scores = cohesion(features, np.asarray([0, 0, 1]), np.asarray([[0.1, 0.0], [0.0, 0.7], [1.0, 1.0]], np.float32))
    np.testing.assert_allclose(scores, [0.5, 1.0, -1.0], rtol=1e-5)


def test_k_means_finds_the_clouds():
    features, truth = clouds([0.05, 0.05, 0.05])
    result = pseudo_labels(features, Label(num_clusters=3, cohesion_threshold=0.5), 0)
    assert result["kept"].all()
    pairs = set(zip(truth.tolist(), result["label"].tolist(), strict=True))
    assert len(pairs) == 3
    assert {label for _, label in pairs} == {0, 1, 2}


@pytest.mark.parametrize("assignment", ["reassign", "drop"])
def test_images_of_rejected_clusters(assignment):
    features, truth = clouds([0.05, 0.05, 0.6])
    label = Label(num_clusters=3, cohesion_threshold=0.9, assignment=assignment)
    result = pseudo_labels(features, label, 0)
    assert result["kept"].sum() == 2
    kept_centroids = result["centroids"][result["kept"]]
    nearest = ((features[:, None] - kept_centroids[None]) ** 2).sum(-1).argmin(1)
    if assignment == "reassign":
        np.testing.assert_array_equal(result["label"], nearest)
    else:
        dropped = result["label"] < 0
        assert dropped[truth == 2].mean() > 0.8
        assert not dropped[truth != 2].any()
        np.testing.assert_array_equal(result["label"][~dropped], nearest[~dropped])


def test_too_few_cohesive_clusters_is_an_error():
    features, _ = clouds([0.05, 0.6, 0.6])
    label = Label(num_clusters=3, cohesion_threshold=0.95)
    with pytest.raises(InputError, match=r"1 of 3 clusters reach .* = 0.95"):
        pseudo_labels(features, label, 0)
    assert pseudo_labels(features, dataclasses.replace(label, cohesion_threshold=-1.0), 0)["kept"].all()
