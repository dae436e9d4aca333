"""Pseudo-labels on clusters that are known."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from side_jax.errors import InputError
from side_jax.features import clustering
from side_jax.features.clustering import cohesion, pseudo_labels
from side_jax.report import plots
from side_jax.settings import Label


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
    moved = int((result["cluster"] == np.flatnonzero(result["status"] == "rejected")[0]).sum())
    counts = result["counts"]
    assert counts["rejected_by_cohesion"] == 1
    reassigns = assignment == "reassign"
    assert (counts["reassigned_images"], counts["dropped_images"]) == ((moved, 0) if reassigns else (0, moved))


def test_too_few_cohesive_clusters_is_an_error():
    features, _ = clouds([0.05, 0.6, 0.6])
    label = Label(num_clusters=3, cohesion_threshold=0.95)
    with pytest.raises(InputError, match=r"1 of 3 clusters reach .* = 0.95"):
        pseudo_labels(features, label, 0)
    assert pseudo_labels(features, dataclasses.replace(label, cohesion_threshold=-1.0), 0)["kept"].all()


@pytest.mark.parametrize("assignment", ["reassign", "drop"])
def test_a_cluster_of_one_is_tiny(assignment):
    """The third axis holds one image, a little nearer to the second axis than to the first."""
    features, _ = clouds([0.05, 0.05])
    features = np.concatenate([features, unit([[0.0, 0.3, 1.0, 0.0, 0.0, 0.0]])])
    label = Label(num_clusters=3, assignment=assignment)
    result = pseudo_labels(features, label, 0)
    tiny = result["cluster"][-1]
    assert result["status"][tiny] == "tiny"
    assert result["cohesion"][tiny] == pytest.approx(1)
    assert result["counts"]["tiny"] == 1
    assert result["counts"]["sizes"] == ([40, 40.5, 41] if assignment == "reassign" else [40, 40, 40])
    assert result["label"][-1] == (result["label"][40] if assignment == "reassign" else -1)
    assert pseudo_labels(features, dataclasses.replace(label, min_cluster_size=1), 0)["kept"].all()


def test_fewer_different_images_than_clusters_leave_some_empty():
    """Three different images, ten times each, in five clusters: two are empty, and scikit-learn's warning stays in."""
    features = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    result = pseudo_labels(features, Label(num_clusters=5), 0)
    empty = result["status"] == "empty"
    np.testing.assert_array_equal(result["cohesion"], np.where(empty, -1, 1))
    np.testing.assert_array_equal(result["kept"], ~empty)
    assert result["counts"]["empty"] == 2
    assert result["counts"]["cohesion"] == [1, 1, 1]
    np.testing.assert_array_equal(np.bincount(result["label"]), [10, 10, 10])


@pytest.mark.parametrize("assignment", ["reassign", "drop"])
def test_clusters_at_one_place_are_merged(assignment):
    """Unit vectors at three angles: 0 and 0.0005 are one cluster by their distance, 0.02 is another."""
    angles = np.repeat([0.0, 0.0005, 0.02], 10)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    result = pseudo_labels(features, Label(num_clusters=3, assignment=assignment), 0)
    assert len(set(result["cluster"])) == 3
    assert sorted(result["status"]) == ["duplicate", "kept", "kept"]
    assert result["counts"]["duplicate"] == 1
    assert (result["counts"]["reassigned_images"], result["counts"]["dropped_images"]) == (0, 0)
    first, second = result["label"][0], result["label"][-1]
    np.testing.assert_array_equal(result["label"], np.repeat([first, first, second], 10))
    assert {first, second} == {0, 1}
    assert result["status"][result["cluster"][[0, 10]].max()] == "duplicate"  # of the earlier one


@pytest.mark.parametrize("assignment", ["reassign", "drop"])
def test_images_without_features_take_no_part(assignment):
    features, _ = clouds([0.05, 0.05, 0.05])
    label = Label(num_clusters=3, assignment=assignment)
    alone = pseudo_labels(features, label, 0)
    result = pseudo_labels(np.insert(features, [0, 60], 0, axis=0), label, 0)
    for name in ("label", "cluster"):
        np.testing.assert_array_equal(result[name], np.insert(alone[name], [0, 60], -1))
    for name in ("centroids", "cohesion", "kept", "status"):
        np.testing.assert_array_equal(result[name], alone[name])
    assert result["counts"] == alone["counts"] | {"featureless": 2, "dropped_images": 2}


def test_counts_say_what_became_of_every_cluster():
    features, _ = clouds([0.05, 0.05, 0.6])
    counts = pseudo_labels(features, Label(num_clusters=8, cohesion_threshold=0.93, min_cluster_size=5), 0)["counts"]
    parts = ("kept", "rejected_by_cohesion", "empty", "tiny", "duplicate")
    assert sum(counts[name] for name in parts) == counts["clusters"] == 8
    assert min(counts["kept"], counts["rejected_by_cohesion"], counts["tiny"]) > 0


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (np.full((9, 2), np.nan), ("'pixels'", "9 of 9 images", "first for image 0")),
        (np.eye(9, 2), ("is 3, but only 2 of 9", "lower it")),
        (np.eye(3), ("0 of 3 clusters", "= 0.5 (0 empty, 3 tiny", "reaches 1.000: lower label.num_clusters")),
        (np.ones((9, 1)), ("1 of 3 clusters", "2 empty", "reaches 1.000", "choose other label.features")),
    ],
    ids=["nan", "featureless", "tiny", "alike"],
)
def test_features_that_cannot_be_clustered(features, words):
    with pytest.raises(InputError) as caught:
        pseudo_labels(np.asarray(features, np.float32), Label(num_clusters=3), 0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("minibatch_above", [1000, 100])
def test_mini_batches_find_the_same_clouds_and_seeds_decide(minibatch_above, monkeypatch):
    features, truth = clouds([0.05, 0.05, 0.05])
    monkeypatch.setattr(clustering, "MiniBatchKMeans" if minibatch_above > len(features) else "KMeans", None)
    label = Label(num_clusters=3, minibatch_above=minibatch_above)
    result, again = (pseudo_labels(features, label, 2**40 + 5) for _ in range(2))
    assert len(set(zip(truth.tolist(), result["label"].tolist(), strict=True))) == 3
    for name in ("label", "centroids", "cohesion"):
        np.testing.assert_array_equal(result[name], again[name])
    others = [pseudo_labels(features, label, seed)["label"].tolist() for seed in range(5)]
    assert any(other != result["label"].tolist() for other in others)


@pytest.mark.parametrize(("shape", "num_clusters"), [((8, 8, 1), 3), ((8, 8, 3), 14), ((64, 64, 1), 14)])
def test_the_picture_of_clusters(shape, num_clusters):
    features, _ = clouds([0.05, 0.2, 0.4])
    features[7] = 0
    images = np.random.default_rng(0).integers(0, 256, (len(features), *shape), np.uint8)
    result = pseudo_labels(features, Label(num_clusters=num_clusters), 0)
    png = plots.clusters(images, features, result)
    with Image.open(io.BytesIO(png)) as picture:
        rows = min(num_clusters, 10)
        assert picture.height == pytest.approx(plots.DPI * (rows * 1.1 + 0.4), abs=2)
        picture.verify()
    assert png == plots.clusters(images, features, result)
