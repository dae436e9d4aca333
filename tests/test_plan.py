"""--dry-run: what is left to do, after the checks of a real run, without writing anything."""

import shutil

import pytest
import runs

from side_jax import plan


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def quick(monkeypatch):
    """Each step takes a second, a classifier's two, so that the sums can be checked, and nothing is compiled."""
    monkeypatch.setattr(plan._Clock, "_device_seconds", lambda self, key, measure: 2.0 if "classifier" in key else 1.0)


def lines(capsys):
    """({unit: the rest of its line}, all lines)."""
    rows = capsys.readouterr().out.splitlines()
    return {row.split()[0]: " ".join(row.split()[1:]) for row in rows if row.startswith("  ")}, rows


def test_a_fresh_run_has_all_to_do(tmp_path, capsys, quick):
    assert runs.run([*runs.arguments(tmp_path / "a" / "b"), "--dry-run"]) == 0
    found, rows = lines(capsys)
    assert not (tmp_path / "a").exists()
    assert found["train"] == "40 of 40 steps 40.0 device-seconds"
    assert found["surrogate/side"] == "30 of 30 steps 60.0 device-seconds"
    # 128 images of 64 pixels in shards of 32, each of 3 steps
    assert found["synthesize"] == "4 of 4 shards, 128 images 12.0 device-seconds 0.0 MiB"
    assert found["extract/side_10"] == "2 of 2 shards, 64 images 6.0 device-seconds 0.0 MiB"
    assert len([unit for unit in found if unit.startswith("extract/")]) == 5
    assert "In all 162 device-seconds" in rows[-2]  # 40 + 12 + 60 + 20 + 5 x 6
    assert "Nothing was written" in rows[-1]


def test_what_is_done_is_not_counted(finished, tmp_path, capsys, quick):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "extract" / "side_10" / "shard_00001.npz").unlink()
    before = listing(workdir)
    assert runs.run([*runs.arguments(workdir), "--dry-run"]) == 0
    found, rows = lines(capsys)
    assert listing(workdir) == before
    assert found["train"].startswith("done 0.0")
    assert found["extract/side_10"].startswith("1 of 2 shards, 32 images 3.0")
    assert "In all 3 device-seconds" in rows[-2]


def test_changed_settings_are_to_do_again(finished, capsys, quick):
    assert runs.run([*runs.arguments(finished, surrogate__num_steps=20), "--dry-run"]) == 0
    found, _ = lines(capsys)
    assert found["synthesize"].startswith("done")
    assert found["surrogate/side"].startswith("20 of 20 steps")
    assert found["extract/side_10"].startswith("2 of 2 shards")
    assert found["extract/unconditional"].startswith("done")


def test_the_attacks_may_have_a_solver_and_steps_of_their_own(finished, capsys, quick):
    assert runs.run([*runs.arguments(finished, extract__num_steps=2), "--dry-run"]) == 0
    found, _ = lines(capsys)
    assert all(found[unit].startswith("done") for unit in ("synthesize", "surrogate/side"))
    assert found["extract/unconditional"].startswith("2 of 2 shards, 64 images 4.0")
    assert runs.run([*runs.arguments(finished, extract__solver="dpmpp_2m"), "--dry-run"]) == 0
    found, _ = lines(capsys)
    assert found["synthesize"].startswith("done")
    assert found["extract/unconditional"].startswith("2 of 2 shards, 64 images 6.0")


def test_the_same_checks_as_a_real_run(finished, tmp_path, capsys, quick):
    assert runs.run([*runs.arguments(tmp_path / "run", data__num_members=10**6), "--dry-run"]) == 1
    assert "num_members" in capsys.readouterr().err
    assert runs.run([*runs.arguments(finished, train__num_steps=41), "--dry-run"]) == 1
    assert "holds a model made with another config" in capsys.readouterr().err


def test_steps_are_timed(tmp_path, capsys):
    arguments = runs.arguments(tmp_path / "run", extract__attacks="('side','conditional_x0')")
    assert runs.run([*arguments, "--dry-run"]) == 0
    found, _ = lines(capsys)
    seconds = [line.split(" device-seconds")[0].split()[-1] for line in found.values() if " device-seconds" in line]
    assert len(seconds) == 9  # train, synthesize, two surrogates, four runs, and the sum
    assert all(float(value.replace(",", "")) > 0 for value in seconds)
