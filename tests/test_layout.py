"""What import-linter can't see of the architecture: short binaries and functions, and files that say what they do."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "side_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
BINARIES = {"main", "train", "extract", "evaluate", "theory"}
MOST_LINES = 60  # of a function: a screen


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def long_functions(source):
    """Names of functions of more than MOST_LINES without their docstring, unless `# long: <reason>` is above the code.

    Lines are counted from `def` to the end; decorators are left out.
    """
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        described = ast.get_docstring(node) is not None
        count = node.end_lineno - node.lineno + 1
        code = first.lineno
        if described:
            count -= first.end_lineno - first.lineno + 1
            code = node.body[1].lineno if len(node.body) > 1 else node.end_lineno
        reasons = [line.partition("# long:")[2].strip() for line in lines[node.lineno - 1 : code]]
        if count > MOST_LINES and not any(reasons):
            yield node.name


@pytest.mark.parametrize("binary", sorted(BINARIES))
def test_binaries_are_short(binary):
    assert len((PACKAGE / f"{binary}.py").read_text().splitlines()) < 80


def test_at_most_ten_files_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_say_what_they_do(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.name == "__init__.py"], ids=lambda path: path.parent.name
)
def test_rooms_say_what_they_are_for_in_one_sentence(path):
    said = ast.get_docstring(ast.parse(path.read_text())).partition("\n\n")[0]
    assert said.endswith(".")
    assert not re.search(r"[.] [A-Z]", said)


def test_no_two_files_share_a_name_but_a_stage_and_its_binary():
    by_name = {}
    for path in SOURCES:
        by_name.setdefault(path.stem, []).append(str(path.parent.relative_to(PACKAGE)))
    for name, folders in by_name.items():
        if name != "__init__" and len(folders) > 1:
            assert name in BINARIES, (name, folders)
            assert sorted(folders) == [".", "stages"], name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_fit_on_a_screen_or_say_why_not(path):
    assert list(long_functions(path.read_text())) == []


@pytest.mark.parametrize(
    ("lines", "reason", "described", "found"),
    [
        (MOST_LINES, "", False, []),
        (MOST_LINES + 1, "", False, ["f"]),
        (MOST_LINES + 1, "", True, ["f"]),
        (MOST_LINES, "", True, []),
        (MOST_LINES + 1, "# long: one table", True, []),
        (MOST_LINES + 1, "# long: one table", False, []),
        (MOST_LINES + 1, "# long:", False, ["f"]),
    ],
)
def test_long_functions_are_found(lines, reason, described, found):
    head = [f"def f():  {reason}", *(['    """Says\n\n    more."""'] if described else [])]
    body = itertools.repeat("    x = 1", lines - 1)
    assert list(long_functions("\n".join([*head, *body]))) == found


def test_nothing_is_ever_unpickled():
    for path in SOURCES:
        text = path.read_text()
        assert "pickle" not in {name.partition(".")[0] for name in imported(path)}
        assert "allow_pickle=True" not in text


def test_import_has_no_side_effects():
    """Importing the package starts no backend and does not touch TensorFlow."""
    code = (
        "import sys, side_jax.main, side_jax.commands.cli, jax._src.xla_bridge as b; "
        "assert not b._backends, b._backends; assert 'tensorflow' not in sys.modules; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_no_foreign_paths_or_tools():
    """What users clone names no path of a developer's machine."""
    texts = [*ROOT.glob("configs/*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "noxfile.py"]
    for path in [*SOURCES, *texts, *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.yml")]:
        for word in ("/work/", "/root/", "../shared"):
            assert word not in path.read_text(), f"{path.relative_to(ROOT)} holds {word}"
