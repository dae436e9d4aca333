"""--dry-run: what is left to do, after the checks of a real run, without writing anything."""

import dataclasses
import shutil

import jax
import pytest
import runs

from side_jax import builders
from side_jax.config import from_config
from side_jax.pipeline import clock, plan, saved_config, space
from side_jax.stages import estimates, stage_inputs, stage_table
from side_jax.stages.estimates import Timing


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def quick(monkeypatch):
    """Each step takes a second, a classifier's two, so that the sums can be checked; what is done by the host, none."""

    def timed(self, measure):
        raise AssertionError("nothing may be timed")

    class Fixed(dict):
        def __missing__(self, key):
            step = 0.0 if key == "product" else 2.0 if "classifier" in key else 1.0
            return Timing(step=step * jax.device_count())

        def __contains__(self, key):
            return True

    monkeypatch.setattr(clock, "_timed", timed)
    monkeypatch.setattr(
        clock.Clock,
        "__init__",
        lambda self, settings: vars(self).update(_settings=settings, _timings=Fixed(), _planned=set()),
    )
    for name in ("CLUSTERING", "_EVALUATE", "_TABLES", "_REPORT", "_SHEET"):
        monkeypatch.setattr(estimates, name, 0.0)


def lines(capsys):
    """({unit: the rest of its line}, all lines)."""
    rows = capsys.readouterr().out.splitlines()
    return {row.split()[0]: " ".join(row.split()[1:]) for row in rows if row.startswith("  ")}, rows


def test_a_fresh_run_has_all_to_do(tmp_path, capsys, quick):
    assert runs.run([*runs.arguments(tmp_path / "a" / "b"), "--dry-run"]) == 0
    found, rows = lines(capsys)
    assert not (tmp_path / "a").exists()
    assert found["train"] == "40 of 40 steps 40.0 seconds"
    assert found["surrogate/side"] == "30 of 30 steps 60.0 seconds"
    # 128 images of 64 pixels in shards of 32, each of 3 steps
    assert found["synthesize"] == "4 of 4 shards, 128 images 12.0 seconds 0.0 MiB"
    assert found["extract/side_10"] == "2 of 2 shards, 64 images 6.0 seconds 0.0 MiB"
    assert len([unit for unit in found if unit.startswith("extract/")]) == 5
    asked = (64 + 64) * 8 / 32  # of members and held-out images, eight draws of the noise, in batches of 32
    assert found["evaluate"] == f"5 runs {asked:.1f} seconds"
    assert "Total: about 3.2 min" in rows[-2]  # 40 + 12 + 60 + 20 + 5 x 6 + 32
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
    assert "Total: about 3 s" in rows[-2]


def test_changed_settings_are_to_do_again(finished, capsys, quick):
    assert runs.run([*runs.arguments(finished, surrogate__num_steps=20), "--dry-run"]) == 0
    found, _ = lines(capsys)
    assert found["synthesize"].startswith("done")
    assert found["surrogate/side"].startswith("20 of 20 steps")
    assert found["extract/side_10"].startswith("2 of 2 shards")
    assert found["extract/unconditional"].startswith("done")


def test_guided_attacks_may_have_a_solver_and_steps_of_their_own(finished, capsys, quick):
    for options, seconds in (({"extract__num_steps": 2}, "4.0"), ({"extract__solver": "dpmpp_2m"}, "6.0")):
        assert runs.run([*runs.arguments(finished, **options), "--dry-run"]) == 0
        found, _ = lines(capsys)
        for unit in ("synthesize", "surrogate/side", "extract/unconditional"):
            assert found[unit].startswith("done")
        assert found["extract/side_10"].startswith(f"2 of 2 shards, 64 images {seconds}")


def test_rounds_of_mode_seeking_before_a_unit_count(finished, capsys, quick):
    """Of four batches of synthetic images: three rounds before their labels, and two or three before adapters."""
    options = {"extract__attacks": "('side_lora',)", "label__rounds": 3, "adapters__scales": "(1.0,3.0)"}
    options |= {"adapters__num_steps": 12, "adapters__rounds": 2}
    assert runs.run([*runs.arguments(finished, **options), "--dry-run"]) == 0
    found, _ = lines(capsys)
    assert found["synthesize"].startswith("done")
    assert found["label"].startswith("clusters 12.0 seconds")
    assert found["surrogate/side_lora"] == "12 of 12 steps 20.0 seconds"
    for scale in (1, 3):
        assert found[f"extract/side_lora_{scale}"].startswith("2 of 2 shards, 64 images 6.0")
    assert runs.run([*runs.arguments(finished, adapters__keep=0.5, **options), "--dry-run"]) == 0
    assert lines(capsys)[0]["surrogate/side_lora"] == "12 of 12 steps 24.0 seconds"


def test_the_same_checks_as_a_real_run(finished, tmp_path, capsys, quick):
    assert runs.run([*runs.arguments(tmp_path / "run", data__num_members=10**6), "--dry-run"]) == 1
    assert "num_members" in capsys.readouterr().err
    assert runs.run([*runs.arguments(finished, train__num_steps=41), "--dry-run"]) == 1
    assert "holds a model made with another config" in capsys.readouterr().err


def test_steps_are_timed(tmp_path, capsys):
    arguments = runs.arguments(tmp_path / "run", extract__attacks="('side','conditional_x0','side_lora')")
    assert runs.run([*arguments, "--dry-run"]) == 0
    found, _ = lines(capsys)
    seconds = [line.split(" seconds")[0].split()[-1] for unit, line in found.items() if unit != "Total:"]
    assert len(seconds) == 14  # train, synthesize, label, three guides, five runs, evaluate, report, and the disk
    timed = dict(zip(found, (float(value.replace(",", "")) for value in seconds[:-1]), strict=False))
    # Their programs are compiled before, so that a few steps of a tiny network round to nothing.
    again = ("extract/conditional_x0_10", "extract/side_10", "extract/side_lora_1")
    assert all(value > 0 for unit, value in timed.items() if unit not in again)
    assert set(again) < set(timed)
    assert all(timed[unit] >= 0 for unit in again)


def test_compilation_counts_once_and_so_does_what_was_timed(finished):
    """A second plan on the same clock times nothing anew, and compiles everything once more."""
    settings = from_config(saved_config.saved_config(finished))
    known, timed = clock.Clock(settings), []

    def measure():
        timed.append(1)
        return Timing(step=1.0, compiling=5.0)

    one = [known._timing("a", measure).start, known._timing("a", measure).start, known._timing("b", measure).start]
    other = known.for_plan(settings)
    assert (one, other._timing("a", measure).start, len(timed)) == ([5.0, 0.0, 5.0], 5.0, 2)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7 s"), (99, "99 s"), (120, "2 min"), (159, "2.6 min"), (700, "12 min"), (12600, "3.5 h")],
)
def test_times_for_people(seconds, text):
    assert plan.duration(seconds) == text


def left(settings, workdir):
    """Bytes that are yet to be written, the margin for small files apart."""
    need, _ = space.space(settings, workdir)
    return need - 50 * 2**20


def test_disk_space_of_what_is_left(finished, tmp_path):
    settings = from_config(saved_config.saved_config(finished))
    workdir = shutil.copytree(finished, tmp_path / "run")
    assert space.space(settings, workdir)[0] == 0
    (workdir / "extract" / "side_10" / "shard_00001.npz").unlink()
    assert left(settings, workdir) == 32 * 64
    (workdir / "report" / "index.html").unlink()
    assert left(settings, workdir) == 32 * 64
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").mkdir()
    (workdir / "checkpoints" / "half").write_bytes(bytes(1000))
    assert left(settings, workdir) == 32 * 64 + 48 * builders.parameter_count(settings) - 1000
    assert left(settings, workdir) < left(settings, tmp_path / "new")
    other = dataclasses.replace(settings, extract=dataclasses.replace(settings.extract, num_steps=2))
    assert left(other, finished) == 4 * 64 * 64  # its images are made anew, the old ones stay beside them


def test_disk_space_of_classifiers(finished, tmp_path):
    """Three checkpoints, each of parameters, two moments and their average; the best ones; and a teacher's."""
    settings = from_config(saved_config.saved_config(finished))
    module = builders.build_classifier(settings, 4, time_dependent=True)
    work = stage_table.classifier_units(settings, finished)["side"]
    count = builders.size(stage_inputs.restore_ema(settings, work, module).trees["ema"])

    def need(attacks, **surrogate):
        changed = dataclasses.replace(
            settings,
            extract=dataclasses.replace(settings.extract, attacks=attacks),
            surrogate=dataclasses.replace(settings.surrogate, **surrogate),
        )
        return left(changed, tmp_path / "new")

    plain, both = need(("unconditional",)), ("unconditional", "side")
    images = (128 + 2 * 64) * 64 + 2 * 128 * 64 * 4  # synthetic and extracted ones; features, twice
    assert need(both) - plain == 48 * count + images
    assert need(both, patience=2, validate_every=5) - need(both) == 2 * 4 * count
    teacher = builders.build_classifier(settings, 4, time_dependent=False)
    count = builders.size(builders.init_fn(teacher, settings, 0)())
    assert need(both, objective="tdkd", teacher_steps=10) - need(both) == 48 * count


def test_disk_space_of_adapters(finished, tmp_path):
    """Three checkpoints, each of what is trained, two moments and their average; the target is in none."""
    settings = from_config(saved_config.saved_config(finished))

    def need(*attacks, **adapters):
        extract = dataclasses.replace(settings.extract, attacks=attacks)
        changed = dataclasses.replace(settings.adapters, **adapters)
        return left(dataclasses.replace(settings, extract=extract, adapters=changed), tmp_path / "new")

    images = (128 + 64) * 64 + 2 * 128 * 64 * 4  # synthetic and extracted ones; features, twice
    labels = (4 + 1) * 32
    assert need("unconditional", "side_lora", rank=0) - need("unconditional") == images + 48 * labels
    shapes = jax.eval_shape(builders.init_fn(builders.build_network(settings), settings, 0))
    own = dataclasses.replace(settings, adapters=dataclasses.replace(settings.adapters, rank=4))
    count = builders.size(jax.eval_shape(builders.adapters_fn(own, shapes, 4, 0)))
    assert need("side_lora", rank=4) - need("side_lora", rank=0) == 48 * (count - labels)
