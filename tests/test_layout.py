"""The architecture's promises: pure rooms stay pure, binaries and files stay small, every file says what it does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "side_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PURE = {
    "diffusion": {
        "jax",
        "numpy",
        "dataclasses",
        "diffrax",
        "collections",
        "functools",
        "itertools",
        "math",
        "typing",
        "side_jax.diffusion",
    },
    "memorization": {
        "jax",
        "numpy",
        "scipy",
        "sklearn",
        "functools",
        "math",
        "typing",
        "concurrent",
        "warnings",
        "dataclasses",
        "collections",
        "side_jax.memorization",
    },
    "models": {"jax", "numpy", "flax", "functools", "math", "typing", "collections", "dataclasses", "side_jax.models"},
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_import_no_machinery(room):
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imported(path):
            ok = any(name == allowed or name.startswith(allowed + ".") for allowed in PURE[room])
            assert ok, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("binary", ["main", "train", "extract", "evaluate", "theory"])
def test_binaries_are_short(binary):
    assert len((PACKAGE / f"{binary}.py").read_text().splitlines()) < 80


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_do(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))


def test_nothing_is_ever_unpickled():
    for path in SOURCES:
        text = path.read_text()
        assert "pickle" not in {name.partition(".")[0] for name in imported(path)}
        assert "allow_pickle=True" not in text


def test_import_has_no_side_effects():
    """Importing the package starts no backend and does not touch TensorFlow."""
    code = (
        "import sys, side_jax.main, jax._src.xla_bridge as b; "
        "assert not b._backends, b._backends; assert 'tensorflow' not in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_no_foreign_paths_or_tools():
    """What users clone names no path of a developer's machine."""
    for path in [*SOURCES, *ROOT.glob("configs/*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for word in ("/work/", "/root/", "../shared"):
            assert word not in path.read_text(), f"{path.relative_to(ROOT)} holds {word}"
