"""Theorem 1 in closed form: its limit against scipy's integral, what is measured against that, and the command."""

import json
import math
import os

import jax
import numpy as np
import pytest
from runs import ROOT
from scipy import integrate, stats

from side_jax.commands import cli, closed_form
from side_jax.errors import InputError
from side_jax.memorization.theory import theorem
from side_jax.memorization.theory.theorem import Law, limit, make_law
from side_jax.report import plots
from side_jax.settings.mixtures import Theory

LINE = Law(
    weights=np.asarray([0.5, 0.3, 0.2]), means=np.asarray([[-2.0], [0.5], [3.0]]), spreads=np.asarray([0.7, 1, 2])
)
KEY = jax.random.key(0)


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("epsilon", [0.0, 0.4])
def test_the_limit_is_scipys_integral(label, epsilon):
    each = [stats.norm(mean, s) for mean, s in zip(LINE.means[:, 0], LINE.spreads, strict=True)]
    blurred = stats.norm(LINE.means[label, 0], math.hypot(LINE.spreads[label], epsilon))

    def integrand(x):
        p = sum(w * one.pdf(x) for w, one in zip(LINE.weights, each, strict=True))
        return blurred.pdf(x) * (math.log(p) - each[label].logpdf(x))

    expected, _ = integrate.quad(integrand, -25, 25, epsabs=1e-11, limit=500)
    np.testing.assert_allclose(limit(LINE, label, epsilon), expected, atol=1e-7)


def test_a_dimension_in_which_all_means_are_equal_changes_nothing():
    plane = Law(weights=LINE.weights, means=np.pad(LINE.means, ((0, 0), (0, 1))), spreads=np.ones(3))
    line = Law(weights=LINE.weights, means=LINE.means, spreads=np.ones(3))
    np.testing.assert_allclose(limit(plane, 1), limit(line, 1), atol=1e-9)


def test_equal_laws_have_the_limit_0_and_separate_ones_that_of_the_weights():
    same = make_law((0.5, 0.3, 0.2), (1.0, 1.0, 1.0), 0.0, 2, 0)
    far = make_law((0.5, 0.3, 0.2), (0.01, 0.01, 0.01), 10.0, 2, 0)
    for i, weight in enumerate((0.5, 0.3, 0.2)):
        assert abs(limit(same, i)) < 1e-12
        np.testing.assert_allclose(limit(far, i), math.log(weight), atol=1e-9)
    np.testing.assert_allclose(far.weights @ [limit(far, i) for i in range(3)], -far.entropy, atol=1e-9)
    part = same.sample(np.zeros(50, int), np.random.default_rng(0))
    np.testing.assert_allclose(theorem.informative_differences(same, [part] * 3, 0.1, KEY, 100), 0, atol=1e-12)


def test_the_limit_is_right_where_spreads_differ_as_much_as_settings_allow():
    law = Law(
        weights=np.asarray([0.4, 0.6]), means=np.asarray([[0.0], [1.0]]), spreads=np.asarray([1.0, theorem.FINEST])
    )
    z = np.linspace(-14, 14, 100_001)
    x = (law.means[1] + law.spreads[1] * z)[:, None]
    expected = (stats.norm.pdf(z) * (law.log_p(x) - law.log_each(x)[:, 1])).sum() * (z[1] - z[0])
    np.testing.assert_allclose(limit(law, 1), expected, atol=1e-4)


def test_three_dimensions_are_refused():
    with pytest.raises(ValueError, match="in 1 or 2 dimensions, got 3"):
        limit(make_law((0.5, 0.5), (1.0, 1.0), 1.0, 3, 0), 0)


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [((0.25,) * 4, 8, [2, 2, 2, 2]), ((0.5, 0.3, 0.2), 7, [4, 2, 1]), ((1 / 3,) * 3, 10, [4, 3, 3])],
)
def test_counts_share_out_all_images(weights, total, expected):
    np.testing.assert_array_equal(theorem.label_counts(np.asarray(weights), total), expected)


SMALL = {
    "dimensions": 1,
    "labels": 3,
    "separation": 1.0,
    "spreads": (0.8, 1.0, 1.3),
    "weights": (0.5, 0.3, 0.2),
    "sizes": (10, 300),
    "epsilons": (1.0, 0.05),
    "bandwidth": 3e-4,
    "num_samples": 2000,
    "repeats": 12,
}


@pytest.fixture(scope="module")
def results():
    return closed_form.measure(Theory(**SMALL))


def chosen(results, **values):
    return [row for row in results["rows"] if all(row[key] == value for key, value in values.items())]


def test_the_difference_tends_to_the_limit(results):
    """At the largest size within 4 errors; the smallest epsilon is closer, and the largest size scatters less."""
    for label in (None, 0, 1, 2):
        wide, fine = ([*chosen(results, case="informative", label=label, epsilon=e)] for e in (1.0, 0.05))
        for few, many in (wide, fine):
            assert abs(many["difference"] - many["limit_at_epsilon"]) < 4 * many["standard_error"]
            assert abs(few["difference"] - few["limit_at_epsilon"]) < 5 * few["standard_error"]
            assert many["deviation"] < 0.5 * few["deviation"]
        assert abs(fine[1]["difference"] - fine[1]["limit"]) < 4 * fine[1]["standard_error"]
        assert fine[1]["limit"] < 0
    wide, fine = (chosen(results, case="informative", label=None, epsilon=e)[1] for e in (1.0, 0.05))
    assert abs(fine["difference"] - fine["limit"]) < abs(wide["difference"] - wide["limit"])
    np.testing.assert_allclose(
        results["limits"]["mean"], np.dot(SMALL["weights"], results["limits"]["labels"]), rtol=1e-12
    )
    assert -results["entropy"] < results["limits"]["mean"] < 0


def test_random_labels_cost_what_fitting_costs(results):
    few, many = chosen(results, case="fitted")
    for row in (few, many):
        assert row["bound"] - 4 * row["standard_error"] < row["difference"] < 4 * row["standard_error"]
    assert abs(many["difference"]) < 0.01


def test_the_cost_of_fitting_is_wilks_where_the_laws_do_not_overlap():
    law = make_law((0.5, 0.25, 0.25), (0.01, 0.01, 0.01), 5.0, 2, 1)
    rng, found = np.random.default_rng(3), []
    for repeat in range(60):
        kinds = np.repeat(np.arange(3), theorem.label_counts(law.weights, 600))
        images = law.sample(kinds, rng)
        random = np.split(rng.permutation(600), 3)
        key = jax.random.fold_in(KEY, repeat)
        of_parts = [images[i] for i in random], [kinds[i] for i in random]
        found.append(theorem.fitted_differences(law, *of_parts, 1e-3, key, 3000).mean())
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert error < 0.1 * -theorem.fitting_cost(law, 200)
    assert abs(np.mean(found) - theorem.fitting_cost(law, 200)) < 4 * error


def test_models_that_hold_their_images_gain_the_label_whatever_the_partition(results):
    """-log K for random parts of equal size; for labels, -log(N / |D_i|) each, and their entropy on average."""
    (few, many), named = chosen(results, case="held_random"), chosen(results, case="held", size=10)
    for row in (few, many):
        np.testing.assert_allclose(row["bound"], -math.log(3))
        assert row["bound"] - 1e-6 <= row["difference"] < 0.8 * row["bound"]
    assert few["difference"] < 0.99 * few["bound"]
    assert named[0]["label"] is None
    np.testing.assert_allclose(named[0]["bound"], -results["entropy"])
    np.testing.assert_allclose(named[0]["difference"], -results["entropy"], rtol=0.02)
    biggest = chosen(results, case="held", label=0)[0]
    assert biggest["size"] == 15
    np.testing.assert_allclose(biggest["difference"], math.log(0.5), rtol=0.02)


def test_kernels_as_wide_as_the_law_gain_nothing_of_random_labels():
    law, rng = make_law((0.5, 0.5), (1.0, 1.0), 0.0, 1, 0), np.random.default_rng(4)
    parts = [law.sample(np.zeros(500, int), rng) for _ in range(2)]
    assert (np.abs(theorem.memorised_differences(parts, 1.0, KEY, 500)) < 0.01).all()
    assert (theorem.memorised_differences(parts, 3e-5, KEY, 500) < -0.95 * math.log(2)).all()


VALUES = [
    ({"seed": -1}, "config.seed is -1", "at least 0"),
    ({"dimensions": 3}, "config.dimensions is 3", "1 or 2"),
    ({"labels": 1}, "config.labels is 1", "between 2 and 20"),
    ({"separation": -1.0}, "config.separation is -1.0", "between 0 and 100"),
    ({"spreads": (1.0, 2.0)}, "config.spreads is (1.0, 2.0)", "3 numbers above 0"),
    ({"spreads": (1.0, 2.0, 0.0)}, "config.spreads is (1.0, 2.0, 0.0)", "above 0"),
    ({"spreads": (0.2, 0.5, 0.3)}, "config.spreads is (0.2, 0.5, 0.3)", "epsilons[0] (1)", "at most 5 times as wide"),
    ({"weights": ()}, "config.weights is ()", "3 numbers above 0"),
    ({"weights": (0.5, 0.5, 0.5)}, "config.weights is (0.5, 0.5, 0.5)", "that sum to 1"),
    ({"sizes": ()}, "config.sizes is ()", "ascending and at least 4 images"),
    ({"sizes": (30, 10)}, "config.sizes is (30, 10)", "ascending"),
    ({"sizes": (3, 10)}, "config.sizes is (3, 10)", "at least 4 images"),
    ({"sizes": (10, 10**6)}, "config.sizes is (10, 1000000)", "at most 1,000,000 images"),
    ({"epsilons": (0.1, 1.0)}, "config.epsilons is (0.1, 1.0)", "descending"),
    ({"epsilons": ()}, "config.epsilons is ()", "one or more"),
    ({"epsilons": (1.0, 1e-5)}, "config.epsilons is (1.0, 1e-05)", "at least 0.00023"),
    ({"bandwidth": 0.0}, "config.bandwidth is 0.0", "at least 0.00023"),
    ({"num_samples": 1}, "config.num_samples is 1", "at least 2"),
    ({"repeats": 1}, "config.repeats is 1", "at least 2"),
]


@pytest.mark.parametrize(("bad", "words"), [(row[0], row[1:]) for row in VALUES], ids=lambda x: str(x)[:50])
def test_bad_value(bad, words):
    with pytest.raises(InputError) as caught:
        Theory(**SMALL | bad)
    for word in words:
        assert word in str(caught.value)


def test_the_finest_noise_that_settings_allow_can_be_drawn(monkeypatch):
    """draw refuses what float32 can't hold; settings must have refused it before."""
    monkeypatch.setattr(theorem, "limit", lambda *_: 0.0)  # it draws nothing, and takes longer than all that does
    for seed in range(3):
        s = Theory(
            separation=100.0, epsilons=(0.01011,), bandwidth=0.01011, sizes=(1000,), num_samples=2, repeats=2, seed=seed
        )
        closed_form.measure(s)


CONFIG = f"--config={ROOT / 'configs' / 'theory_gmm.py'}"
TINY = ["--config.sizes=(10,40)", "--config.epsilons=(0.5,0.1)", "--config.num_samples=50", "--config.repeats=2"]


def command(*argv):
    return cli.theory(["side_jax", *argv], "test")


def test_the_command(tmp_path, capsys, monkeypatch):
    argv = [CONFIG, f"--workdir={tmp_path / 'run'}", *TINY]
    assert command(*argv) == 0
    said = capsys.readouterr().out
    assert "-KL(p_i || p) averaged over the labels, is -0.8119" in said
    assert "no likelier" in said
    folder = tmp_path / "run" / "theory"
    assert sorted(os.listdir(folder)) == ["results.json", "theorem1.png"]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = json.loads(first["results.json"])
    assert found["settings"]["sizes"] == [10, 40]
    # Of both sizes: a mean and four labels at two epsilons, and where models hold their images; two of random labels.
    assert len(found["rows"]) == 2 * (5 * 2 + 5 + 2)
    assert command(*argv) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    monkeypatch.setattr(plots, "theorem", lambda _: b"")
    assert command(*argv, "--config.seed=1") == 0
    assert (folder / "results.json").read_bytes() != first["results.json"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([CONFIG], 2, "--workdir=DIR is missing"),
        ([CONFIG, "--workdir=RUN", "now"], 2, "'now' is not an option"),
        ([CONFIG, "--workdir=RUN", "--stages=train"], 2, "stages"),
        ([CONFIG, "--workdir=RUN", "--config.repeats=many"], 2, "many"),
        ([CONFIG, "--workdir=RUN", "--config.repeats=1"], 1, "config.repeats is 1, but it must be at least 2."),
        (
            [f"--config={ROOT / 'configs' / 'smoke.py'}", "--workdir=RUN"],
            1,
            "is not a setting; the config has name, seed",
        ),
        (["--config=nowhere.py", "--workdir=RUN"], 2, "nowhere.py"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path, capsys, argv, code, words):
    assert command(*(argument.replace("RUN", str(tmp_path / "run")) for argument in argv)) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("side_jax: ")
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_workdir_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(CONFIG, f"--workdir={tmp_path / 'file' / 'run'}", *TINY) == 1
    assert "can't be written (Not a directory)" in capsys.readouterr().err


def test_help(capsys):
    assert command("--help") == 0
    printed = capsys.readouterr().out
    for words in ("theory/results.json", "--config=NAME", "Exit codes"):
        assert words in printed
