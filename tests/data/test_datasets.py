"""Datasets in memory and as streams, the split, near duplicates, and batches made ahead."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from PIL import Image

from side_jax.data import batches, datasets, duplicates, split
from side_jax.data.stream import Stream
from side_jax.errors import InputError
from side_jax.settings import Data


def make(images, labels=None):
    """A dataset in memory of these images, of one label unless given."""
    labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels, np.int32)
    names = tuple(f"{i}.png" for i in range(len(images)))
    return datasets.Dataset(images=images, labels=labels, num_classes=len(np.unique(labels)), names=names)


def noise(n, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def ids(result, side):
    return [row["id"] for row in result[side]]


def rmse(a, b):
    return np.sqrt(np.mean(np.square((a.astype(np.float64) - b) / 127.5)))


def test_split_is_disjoint_and_repeatable():
    data = Data(num_members=200, num_heldout=200)
    digits = datasets.load(data)
    first, other, again = (split.make_split(digits, data, seed) for seed in (0, 1, 0))
    assert first is not again  # only the last one is kept
    assert first == again
    assert first["members"] != other["members"]
    members, heldout = (set(ids(first, side)) for side in ("members", "heldout"))
    assert len(members) == len(heldout) == 200
    assert not members & heldout
    hashes = [{row["sha256"] for row in first[side]} for side in ("members", "heldout")]
    assert not hashes[0] & hashes[1]
    row = first["members"][3]
    assert row["name"] == str(row["id"])
    assert row["label"] == digits.labels[row["id"]]
    assert json.loads(json.dumps(first)) == first


def test_exact_duplicates_never_straddle_the_split():
    images = noise(30)
    doubled = make(np.concatenate([images, images]))
    result = split.make_split(doubled, Data(num_members=15, num_heldout=15), 0)
    assert result["counts"]["exact_duplicates_left_out"] == 30
    assert sorted(ids(result, "members") + ids(result, "heldout")) == list(range(30))
    with pytest.raises(InputError, match="need 32 different images, but the dataset has 30: 14 are left"):
        split.make_split(doubled, Data(num_members=16, num_heldout=16), 0)


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_of_members_are_moved_out_of_the_held_out_images(seed):
    """20 images, each with a twin one grey level brighter, of RMSE 1 / 127.5 < 0.05; noise is 0.8 apart."""
    images = noise(20) // 2
    twins = make(np.concatenate([images, images + 1, noise(10, seed=1)]))
    result = split.make_split(twins, Data(num_members=15, num_heldout=15), seed)
    members, heldout = ids(result, "members"), ids(result, "heldout")
    assert len(set(members) | set(heldout)) == 30
    assert not {i % 20 for i in members if i < 40} & {i % 20 for i in heldout if i < 40}
    # The oracle: candidates in the same random order, one after the other.
    order = np.random.default_rng([seed, 0]).permutation(50)
    assert members == order[:15].tolist()
    kept, moved, marked = [], 0, set()
    for i in order[15:]:
        if len(kept) < 15:
            near = [j for j in members if rmse(twins.images[i], twins.images[j]) < 0.05]
            moved, kept, marked = moved + bool(near), kept if near else [*kept, i], marked | set(near)
    assert heldout == kept
    assert marked
    assert {row["id"] for row in result["members"] if row["near_moved"]} == marked
    assert result["counts"]["near_duplicates_moved"] == moved
    assert result["counts"]["members_near_moved"] == len(marked)
    within = sum(rmse(twins.images[i], twins.images[j]) < 0.05 for i in members for j in members if i < j)
    assert result["counts"]["near_duplicate_pairs_within_members"] == within
    loose = split.make_split(twins, Data(num_members=15, num_heldout=15, near_duplicate_rmse=0.0), seed)
    assert ids(loose, "heldout") == order[15:30].tolist()
    assert loose["counts"]["near_duplicates_moved"] == 0


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 7, 3), (24, 24, 1), (29, 29, 3), (40, 33, 1)])
def test_distances_of_signatures_bound_rmses_from_below(shape):
    height, width, channels = shape
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *shape), np.uint8)
    images[1] = np.clip(images[0].astype(int) + 9, 0, 255)
    images[2], images[3] = 0, 255
    found = duplicates.signatures(images).astype(np.float64)
    assert (np.linalg.norm(found, axis=1) <= 1 + 1e-6).all()
    for i in range(6):
        for j in range(6):
            bound, exact = np.linalg.norm(found[i] - found[j]), rmse(images[i], images[j])
            assert bound <= exact + 1e-6
            if height * width * channels <= duplicates.ENTRIES or {i, j} == {2, 3}:
                assert bound == pytest.approx(exact, abs=1e-6)  # a block for each pixel, or a constant difference


@pytest.mark.parametrize("limit", [0.01, 0.3, 0.8, 1.5])
def test_near_pairs_are_those_of_all_pairs(monkeypatch, limit):
    monkeypatch.setattr(duplicates, "ROWS", 7)
    monkeypatch.setattr(duplicates, "COLUMNS", 9)
    images = noise(40, size=20)
    for i in range(20):  # ever nearer to image 20 + i
        images[i] = images[20 + i] + (images[i] / 255.0 - images[20 + i] / 255.0) * i * 10
    rows, columns = np.arange(3, 33), np.arange(39, 11, -1)
    found = duplicates.near_pairs(images, duplicates.signatures(images), rows, columns, limit)
    pairs = {(i, j) for block in found for i, j in block.tolist()}
    expected = {(i, j) for i in rows for j in columns if i != j and rmse(images[i], images[j]) < limit}
    assert pairs == expected


def test_the_limit_itself_is_not_near():
    """In integers: a difference of 51 grey levels everywhere is an RMSE of exactly 0.4."""
    images = np.zeros((2, 8, 8, 1), np.uint8)
    images[1] = 51
    for limit, count in ((0.4, 0), (0.4001, 1)):
        found = duplicates.near_pairs(images, duplicates.signatures(images), np.asarray([0]), np.asarray([1]), limit)
        assert sum(len(block) for block in found) == count


@pytest.mark.parametrize("seed", range(5))
def test_no_identity_is_on_both_sides(seed):
    labels = np.repeat(np.arange(12), [9, 1, 7, 3, 5, 5, 2, 8, 4, 6, 5, 5])
    data = Data(num_members=20, num_heldout=20, split_by="identity")
    result = split.make_split(make(noise(60), labels), data, seed)
    members, heldout = ids(result, "members"), ids(result, "heldout")
    assert len(set(members)) == len(set(heldout)) == 20
    assert not set(labels[members]) & set(labels[heldout])
    assert result["counts"]["member_labels"] == len(set(labels[members]))
    assert result["counts"]["heldout_labels"] == len(set(labels[heldout]))
    partial = [label for label in set(labels[members]) if (labels == label).sum() > (labels[members] == label).sum()]
    assert len(partial) <= 1  # all of an identity is used, but of the last one


@pytest.mark.parametrize("seed", range(5))
def test_identities_fill_both_sides_where_only_few_orders_can(seed):
    labels = np.repeat(np.arange(3), [12, 6, 6])
    result = split.make_split(make(noise(24), labels), Data(num_members=12, num_heldout=12, split_by="identity"), seed)
    sides = [set(labels[ids(result, side)]) for side in ("members", "heldout")]
    assert sides in ([{0}, {1, 2}], [{1, 2}, {0}])


def test_labels_with_few_images_are_left_out(tmp_path):
    np.savez(tmp_path / "data.npz", images=noise(12), labels=np.asarray([5, 5, 5, 9, 7, 7, 7, 7, 8, 8, 5, 7]))
    data = Data(name="npz", path=str(tmp_path / "data.npz"), num_members=4, num_heldout=4, min_per_label=3)
    kept = datasets.load(data)
    assert kept.names == ("0", "1", "2", "4", "5", "6", "7", "10", "11")
    assert kept.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert kept.num_classes == 2
    result = split.make_split(kept, dataclasses.replace(data, split_by="identity"), 0)
    assert result["counts"]["images_considered"] == 9
    assert result["counts"]["member_labels"] == result["counts"]["heldout_labels"] == 1


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_split_file_notices_changed_data(tmp_path, storage):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(noise(20)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:02}.png")
    data = Data(name="folder", path=str(folder), num_members=8, num_heldout=8, storage=storage)
    whole = datasets.load(data)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split.make_split(whole, data, 0)))
    members, heldout, member_ids, heldout_ids = split.apply_split(whole, path)
    np.testing.assert_array_equal(members.images, np.asarray(whole.images)[member_ids])
    np.testing.assert_array_equal(heldout.labels, whole.labels[heldout_ids])
    assert members.names == tuple(f"{i:02}.png" for i in member_ids)
    with pytest.raises(InputError, match="has only 10 images now"):
        split.apply_split(whole.take(np.arange(10)), path)
    Image.new("L", (8, 8), 3).save(folder / f"{member_ids[3]:02}.png")
    datasets.forget()
    with pytest.raises(InputError, match=f"image {member_ids[3]} of the dataset differs from the one in "):
        split.apply_split(datasets.load(data), path)


def test_storage_is_what_fits_and_is_logged(tmp_path, caplog):
    np.savez(tmp_path / "data.npz", images=noise(257, size=64))
    data = Data(name="npz", path=str(tmp_path / "data.npz"), image_size=64, memory_limit_mb=1)
    caplog.set_level("INFO")
    small = dataclasses.replace(data, num_members=100, num_heldout=100)
    assert isinstance(datasets.load(small).images, Stream)
    assert "257 x 64 x 64 x 1 images" in caplog.text
    assert "read for each batch: 1.0 MiB (data.storage = auto, data.memory_limit_mb = 1)" in caplog.text
    np.savez(tmp_path / "data.npz", images=noise(256, size=64))
    datasets.forget()
    assert isinstance(datasets.load(small).images, np.ndarray)
    assert "decoded into memory: 1.0 MiB" in caplog.text
    assert isinstance(datasets.load(dataclasses.replace(small, storage="stream")).images, Stream)
    assert isinstance(datasets.load(dataclasses.replace(small, storage="memory")).images, np.ndarray)


def test_a_stream_indexes_as_its_array_does():
    images = noise(150, size=6, channels=3)
    reads = []
    stream = Stream(lambda row: reads.append(row) or images[row], np.arange(150), tuple("x" * 150), (6, 6, 3))
    part = stream.select(np.arange(140, 10, -1))
    assert not reads
    assert part.shape == (130, 6, 6, 3)
    assert (len(part), part.dtype, part.ndim) == (130, np.uint8, 4)
    array = images[140:10:-1]
    for key in (np.asarray([5, 0, 5, -1]), slice(3, 9, 2), [1], np.int64(7), -1, np.asarray([], np.int64)):
        np.testing.assert_array_equal(part[key], array[key])
    np.testing.assert_array_equal(np.asarray(part), array)
    assert np.asarray(part, np.float32).dtype == np.float32


def test_a_stream_serves_several_threads(tmp_path):
    for i in range(16):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"{i:02}.png")
    data = Data(name="folder", path=str(tmp_path), num_members=8, num_heldout=8, storage="stream")
    stream = datasets.load(data).images
    wrong = []

    def work():
        for _ in range(5):
            wrong.extend(i for i in range(16) if (stream[[i]] != 10 * i).any())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_batches_come_in_the_order_of_their_steps():
    turn = threading.Event()

    def make_batch(step):
        if step == 3:
            turn.wait(10)  # the first one is ready only after the second
        if step == 5:
            turn.set()
        return step**2

    assert list(batches.prefetch(make_batch, range(3, 20, 2))) == [step**2 for step in range(3, 20, 2)]
    assert list(batches.prefetch(make_batch, range(4, 4))) == []
    assert list(batches.prefetch(lambda step: None, range(2), threads=1, buffer_size=1)) == [None, None]


def test_batches_raise_what_making_them_raises():
    def make_batch(step):
        if step == 2:
            raise InputError("image 7 is gone; restore it.")
        return step

    steps = batches.prefetch(make_batch, range(100))
    assert [next(steps), next(steps)] == [0, 1]
    with pytest.raises(InputError, match="image 7 is gone; restore it"):
        next(steps)


def test_batches_may_be_left_early():
    made = []
    steps = batches.prefetch(lambda step: made.append(step) or step, range(10**9), threads=2, buffer_size=3)
    assert next(steps) == 0
    steps.close()
    assert len(made) <= 5


def test_held_out_images_from_elsewhere(tmp_path):
    """Members are drawn from path alone; a held-out image that a member equals or nearly equals is no held-out one."""
    rng = np.random.default_rng(0)
    seen, unseen = (rng.integers(0, 256, (n, 8, 8), np.uint8) for n in (20, 22))
    unseen[3], unseen[5] = seen[7], seen[9] ^ 1
    for name, images in (("seen", seen), ("unseen", unseen)):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(len(images)) % 4)
    paths = {"path": str(tmp_path / "seen.npz"), "heldout_from": str(tmp_path / "unseen.npz")}
    data = Data(name="npz", num_members=20, num_heldout=20, **paths)
    dataset = datasets.load(data)
    result = split.make_split(dataset, data, 0)
    assert sorted(row["id"] for row in result["members"]) == list(range(20))
    assert sorted(row["id"] - 20 for row in result["heldout"]) == sorted(set(range(22)) - {3, 5})
    assert all(row["name"].startswith("heldout: ") for row in result["heldout"])
    assert result["counts"]["exact_duplicates_left_out"] == result["counts"]["near_duplicates_moved"] == 1
    with pytest.raises(InputError, match=r"num_members = 21, but config.data.path = .*seen.npz. has only 20"):
        datasets.load(dataclasses.replace(data, num_members=21, num_heldout=21))
    unseen[0] = seen[0] = unseen[1]
    np.savez(tmp_path / "unseen.npz", images=unseen)
    np.savez(tmp_path / "seen.npz", images=seen)
    with pytest.raises(InputError, match=r"unseen.npz. has only 19 different images"):
        split.make_split(datasets.load(dataclasses.replace(data, memory_limit_mb=1)), data, 0)
    apart = dataclasses.replace(data, split_by="identity", num_members=2, num_heldout=2)
    result = split.make_split(dataset, apart, 0)
    sides = [{row["label"] for row in result[side]} for side in ("members", "heldout")]
    assert not sides[0] & sides[1]


def test_a_missing_held_out_file_is_named(tmp_path):
    np.savez(tmp_path / "seen.npz", images=np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"config.data.heldout_from=\S*nowhere.npz does not exist"):
        datasets.load(Data(name="npz", path=str(tmp_path / "seen.npz"), heldout_from=str(tmp_path / "nowhere.npz")))


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [((0, 0), (10, 10)), ((12, 0), (12, 8)), ((0, 4), (10, 4)), ((3, 5), (3, 5)), ((15, 4), (15, 4))],
)
def test_all_images_or_as_many_as_are_asked_for(asked, sizes):
    """Here both sides come from one place, so all are halves."""
    dataset, data = make(noise(20)), Data(num_members=asked[0], num_heldout=asked[1])
    made = split.make_split(dataset, data, 0)
    assert tuple(len(made[side]) for side in ("members", "heldout")) == sizes
    assert len({row["id"] for side in ("members", "heldout") for row in made[side]}) == sum(sizes)


def test_all_images_of_two_places(tmp_path):
    np.savez(tmp_path / "seen.npz", images=noise(9))
    np.savez(tmp_path / "unseen.npz", images=np.concatenate([noise(5, seed=1), noise(9)[:2]]))
    data = Data(name="npz", path=str(tmp_path / "seen.npz"), heldout_from=str(tmp_path / "unseen.npz"))
    made = split.make_split(datasets.load(data), data, 0)
    assert [len(made[side]) for side in ("members", "heldout")] == [9, 5]  # two of the held-out images are members


def test_all_images_split_by_identity():
    labels = np.repeat(np.arange(5), 4)
    made = split.make_split(make(noise(20), labels), Data(split_by="identity"), 0)
    members, heldout = ({row["label"] for row in made[side]} for side in ("members", "heldout"))
    assert not members & heldout
    assert (len(made["members"]), len(made["heldout"])) == (10, 8)
