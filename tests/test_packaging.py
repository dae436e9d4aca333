"""The wheel holds configs, schema and templates, and works in a folder that has none of them."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parent.parent
SOURCE = ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "MANIFEST.in", "side_jax", "configs")


def expected():
    """What must be in the wheel: the package's files, but those of Python's own cache, and the configs."""
    files = {path.relative_to(ROOT) for path in (ROOT / "side_jax").rglob("*") if path.is_file()}
    configs = {Path("side_jax") / "configs" / path.name for path in (ROOT / "configs").glob("*.py")}
    return {str(path) for path in files | configs if path.suffix != ".pyc"}


def test_every_file_of_the_package_is_packaged(monkeypatch):
    """By setup.py's own metadata, without building."""
    monkeypatch.chdir(ROOT)
    options = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: options.update(given))
    exec((ROOT / "setup.py").read_text(), {"__file__": str(ROOT / "setup.py"), "__name__": "__main__"})
    found = set()
    for package in options["packages"]:
        folder = ROOT / options["package_dir"].get(package, package.replace(".", "/"))
        patterns = {"*.py", *options["package_data"].get("", ()), *options["package_data"].get(package, ())}
        found |= {f"{package.replace('.', '/')}/{path.name}" for pattern in patterns for path in folder.glob(pattern)}
    assert found == expected()


@pytest.mark.slow
def test_the_wheel_works_anywhere(tmp_path):
    source, wheels, target, elsewhere = (tmp_path / name for name in ("source", "wheels", "target", "elsewhere"))
    source.mkdir()
    elsewhere.mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected()
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", target, wheel], check=True)

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(target), "XDG_CACHE_HOME": str(tmp_path)}
        command = [sys.executable, "-W", "ignore", "-m", "side_jax.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=environment, check=False)

    code = "import side_jax; print(side_jax.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(target)},
        check=True,
    )
    assert done.stdout.strip() == str(target / "side_jax" / "__init__.py")
    done = run("--config=typo", "--workdir=run")
    configs = ", ".join(sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
    assert (done.returncode, re.search(r"come with side_jax: (.*)\.$", done.stderr.strip())[1]) == (2, configs)
    done = run("--config=digits", "--config.seed=-1", "--workdir=run")
    assert (done.returncode, done.stderr) == (1, "side_jax: config.seed is -1, but it must be at least 0.\n")
    done = run("--config=smoke", "--workdir=run", "--stages=train", "--config.train.num_steps=2")
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "train" / "manifest.json").exists()
    for binary in ("side-jax", "side-jax-evaluate"):
        script = target / "bin" / binary
        done = subprocess.run(
            [sys.executable, script, "--version"],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(target)},
            check=False,
        )
        assert done.stdout.startswith("side_jax "), done.stderr
