"""Builds wheel and source distribution and tries them: what they hold, a clean installation, and an audit by it.

python tests/packaged.py [OUT]

Needs the extra `release` and a git clone. All is built in a copy, beside litter that must stay outside. What passed
goes to OUT, if given. Prints the seconds of each step. The exit code is 1 if anything is wrong, and a line says what.
"""

import concurrent.futures
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest.mock
import zipfile
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "side_jax/__init__.py").read_text(), re.MULTILINE)[1]
# What tools and systems leave in a tree.
LITTER = (
    *("side_jax/__pycache__/main.cpython-311.pyc", "configs/__pycache__/digits.cpython-311.pyc"),
    *("tests/hub/__pycache__/x.pyc", "tests/.pytest_cache/README.md", "side_jax/report/page/.DS_Store"),
    *("docs/_build/index.html", "docs/_generated/x.md", "build/lib/side_jax/gone.py", "dist/side_jax-0.0.tar.gz"),
    *(".venv/pyvenv.cfg", ".nox/lint/pyvenv.cfg", ".mypy_cache/x.json", ".ruff_cache/x", "runs/digits/results.json"),
    *("side_jax/main.py~", "side_jax/.main.py.swp", "benchmarks/.ipynb_checkpoints/x.py"),
)
# Of setuptools, in a source distribution.
MADE = re.compile(r"PKG-INFO|setup\.cfg|side_jax\.egg-info/[\w-]+(\.txt)?")
# The units of work of configs/smoke.py that say so when there is nothing left to do.
UNITS = (
    *("train", "synthesize", "label", "surrogate/side", "surrogate/conditional"),
    *("extract/side_10", "evaluate", "report"),
)


class WrongError(Exception):
    """What is wrong, as one line."""


def of_wheel(tree):
    """What must be in the wheel, beside its metadata: the package's files, and the configs as a package."""
    package = {path.relative_to(tree).as_posix() for path in (tree / "side_jax").rglob("*") if path.is_file()}
    return package | {f"side_jax/configs/{path.name}" for path in (tree / "configs").glob("*.py")}


def of_source(tree):
    """What must be in the source distribution, beside what setuptools makes: all."""
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


def in_wheel(path):
    """(the files of a wheel, its metadata by name)."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        metadata = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
        return names - metadata, {name.partition("/")[2]: archive.read(name).decode() for name in metadata}


def in_source(path):
    """The files of a source distribution, without those that setuptools makes, below its one folder."""
    with tarfile.open(path) as archive:
        names = [member.name for member in archive.getmembers() if not member.isdir()]
    tops = {name.partition("/")[0] for name in names}
    if tops != {path.name.removesuffix(".tar.gz")}:
        raise WrongError(f"{path.name} unpacks to {', '.join(sorted(tops))}")
    return {below for name in names if not MADE.fullmatch(below := name.partition("/")[2])}


def compare(what, found, expected):
    """Raises WrongError unless two sets of files are equal."""
    parts = {"lacks": expected - found, "holds, and should not,": found - expected}
    said = [f"{verb} {', '.join(sorted(names))}" for verb, names in parts.items() if names]
    if said:
        raise WrongError(f"{what} {'; it '.join(said)}")


def check_metadata(metadata, setup):
    """Raises WrongError unless a wheel's metadata have the version, the licence, and what setup.py promises."""
    head = metadata["METADATA"].partition("\n\n")[0].splitlines()
    for line in (f"Version: {VERSION}", "Requires-Python: >=3.11", "Name: side_jax"):
        if line not in head:
            raise WrongError(f"the metadata lack `{line}`")
    if not any(name.endswith("LICENSE") for name in metadata):
        raise WrongError("the metadata lack LICENSE")
    compare("the metadata: their extras", _values(head, "Provides-Extra"), set(setup["extras_require"]))
    scripts = {line for line in metadata["entry_points.txt"].splitlines() if "=" in line}
    compare("the metadata: the commands", scripts, set(setup["entry_points"]["console_scripts"]))


def _values(head, name):
    return {line.partition(": ")[2] for line in head if line.startswith(f"{name}: ")}


def setup_options(tree):
    """What setup.py gives to setuptools."""
    options = {}
    with unittest.mock.patch.object(setuptools, "setup", lambda **given: options.update(given)):
        runpy.run_path(str(tree / "setup.py"))
    return options


def run(*command, cwd=ROOT, code=0):
    """Runs a command that must end with an exit code, without this tree on Python's path; returns what it printed."""
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != code:
        raise WrongError(f"{' '.join(map(str, command))} ended with {done.returncode}, not {code}:\n{done.stdout}")
    return done.stdout


def copy(to):
    """Copies the files that git tracks, as they are now."""
    for name in run("git", "ls-files", "-z").split("\0"):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    return to


def build(tree, work):
    """Builds both in a copy of a clean tree with litter in it, and the wheel again from the sdist; checks all three.

    Returns:
      The paths of the wheel and of the source distribution.
    """
    littered = shutil.copytree(tree, work / "littered")
    for name in LITTER:
        (littered / name).parent.mkdir(parents=True, exist_ok=True)
        (littered / name).write_text("litter\n")
    run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", work / "dist", littered)
    ((wheel,), (source,)) = (list((work / "dist").glob(f"side_jax-{VERSION}{end}")) for end in ("-*.whl", ".tar.gz"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", work / "again", source)
    (again,) = (work / "again").glob("*.whl")
    files, metadata = in_wheel(wheel)
    compare(wheel.name, files, of_wheel(tree))
    compare(source.name, in_source(source), of_source(tree))
    compare(f"the wheel made of {source.name}", in_wheel(again)[0], files)
    check_metadata(metadata, setup_options(tree))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    return wheel, source


def install(wheel, work):
    """Installs a wheel with what it asks for into a new environment; returns the folder of its programs."""
    run(sys.executable, "-m", "venv", work / "clean")
    programs = work / "clean" / "bin"
    run(programs / "python", "-m", "pip", "install", "-q", "--no-compile", wheel)  # compiles what is imported, later
    run(programs / "python", "-m", "pip", "check")
    return programs


def try_out(programs, elsewhere):
    """What a user does first, in a folder that has nothing of the package."""
    elsewhere.mkdir()
    found = run(programs / "python", "-c", "import side_jax; print(side_jax.__file__)", cwd=elsewhere)
    if not Path(found.strip()).is_relative_to(programs.parent):
        raise WrongError(f"the installed package is {found.strip()}")

    def asked(words, code, expected):
        program, *arguments = words.split()
        said = run(programs / program, *arguments, cwd=elsewhere, code=code)
        if expected not in said:
            raise WrongError(f"{words} does not say {expected}, but {said}")

    configs = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
    questions = (
        ("side-jax --version", 0, f"side_jax {VERSION}, "),
        ("side-jax-evaluate --version", 0, f"side_jax {VERSION}, "),
        ("side-jax --help", 0, "--config=NAME"),
        ("side-jax --config=typo --workdir=x", 2, configs),
        ("side-jax --config=digits --config.seed=-1 --workdir=x", 1, "config.seed is -1, but it must be at least 0."),
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # each mostly imports JAX
        list(pool.map(asked, *zip(*questions, strict=True)))


def audit(programs, elsewhere):
    """The real command on the smallest config, by its name, twice: the second time there must be nothing left to do."""
    command = (programs / "side-jax", "--config=smoke", "--workdir=runs/smoke")
    print(run(*command, cwd=elsewhere))
    if not (elsewhere / "runs" / "smoke" / "report" / "index.html").stat().st_size:
        raise WrongError("the audit left an empty report")
    said = run(*command, cwd=elsewhere)
    again = [unit for unit in UNITS if f"{unit}: up to date" not in said]
    if again:
        raise WrongError(f"the second run did not find these up to date: {', '.join(again)}\n{said}")


def main(arguments):
    """See the top of the file."""
    with tempfile.TemporaryDirectory() as folder:
        work, start = Path(folder), time.monotonic()

        def step(what, function, *given):
            began = time.monotonic()
            result = function(*given)
            print(f"{time.monotonic() - began:6.1f} s: {what}", flush=True)
            return result

        try:
            tree = step("copied", copy, work / "tree")
            wheel, source = step("built, and all files are there", build, tree, work)
            programs = step("installed into a clean environment", install, wheel, work)
            step("tried out", try_out, programs, work / "elsewhere")
            step("an audit, twice", audit, programs, work / "elsewhere")
        except WrongError as error:
            print(f"package: {error}", file=sys.stderr)
            return 1
        for out in arguments[:1]:
            Path(out).mkdir(parents=True, exist_ok=True)
            for path in (wheel, source):
                shutil.copy(path, out)
        print(f"{time.monotonic() - start:6.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
