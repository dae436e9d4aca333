"""The tasks of a change: `nox -l` lists them, `nox -s lint` runs one, `.ci/run` those of CI on a clean clone.

Each task has an environment of its own under .nox/. With --no-venv, it installs into the active one and runs there.
"""

import platform
import re
import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint"]
nox.options.reuse_existing_virtualenvs = True
ROOT = Path(__file__).parent
WORKERS = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")


def install(session: nox.Session, *arguments: str) -> None:
    """Installs by pip into the task's environment, or the active one with --no-venv, where session.install refuses."""
    session.run("python", "-m", "pip", "install", "-q", *arguments)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """README's test command: makes .venv, installs the package there and runs all but the slow tests."""
    block = re.search(r"<!-- test command -->\n```bash\n(.+?)```\n<!-- end -->", (ROOT / "README.md").read_text(), re.S)
    if not block:
        session.error("README.md has no test command")
    session.run("bash", "-euo", "pipefail", "-c", block[1], external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the layers of the package, types, the syntax of shell scripts, and the Dockerfile."""
    install(session, "-e", ".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("mypy")
    scripts = [*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / ".ci" / "run"]
    for script in sorted(scripts):
        session.run("bash", "-n", str(script), external=True, log=False)
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):  # where the extra has the program
        session.run("hadolint", "--failure-threshold=style", "launch/Dockerfile")


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation in build/docs; a warning is an error."""
    install(session, "-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes."""
    install(session, "-e", ".[test]")
    session.run("pytest", *WORKERS, "-m", "slow and not parity", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """The comparison with diffusers and PyTorch, and an audit of a model that diffusers trained."""
    install(session, "torch==2.13.0")  # by its number, an index may give a build without CUDA, a tenth of the size
    install(session, "-e", ".[test,parity]")
    # Whole training programs, of which the tests need the networks alone; their dependencies would replace PyTorch.
    install(session, "--no-deps", "monai==1.6.1", "denoising-diffusion-pytorch==2.3.4", "einops")
    session.run("pytest", *WORKERS, "-m", "parity", "tests/parity", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Builds wheel and sdist into dist/ if all is well: what they hold, a clean installation, and an audit by it."""
    install(session, "-e", ".[release]")
    session.run("python", "tests/packaged.py", "dist")


@nox.session
def lower_bounds(session: nox.Session) -> None:
    """The real command with the oldest versions that requirements.txt allows."""
    if session.virtualenv.is_sandboxed is False:
        session.error("this task would downgrade the active environment: run it without --no-venv")
    with tempfile.TemporaryDirectory() as folder:
        oldest = Path(folder) / "requirements.txt"
        oldest.write_text((ROOT / "requirements.txt").read_text().replace(">=", "=="))
        install(session, "-r", str(oldest))
        arguments = ("--config=configs/smoke.py", f"--workdir={folder}/smoke")
        session.run("python", "-m", "side_jax.main", *arguments)


@nox.session
def coverage(session: nox.Session) -> None:
    """Which lines the tests run, those of child processes included; nightly or by hand, as it slows the tests."""
    install(session, "-e", ".[test,coverage]")
    session.run("pytest", *WORKERS, "--cov", "--cov-report=term:skip-covered", *session.posargs)
    session.run("coverage", "report", "--format=total")


@nox.session
def faults(session: nox.Session) -> None:
    """Breaks the package on purpose, fault by fault, and asks whether the tests see it; nightly or by hand."""
    install(session, "-e", ".[test]")
    session.run("python", "tests/faults.py", *session.posargs)
