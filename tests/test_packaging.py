"""Wheel, source distribution and image: what each must hold. tests/packaged.py builds them, and tries the wheel."""

import io
import re
import shutil
import tarfile
import zipfile
from fnmatch import fnmatchcase

import packaged
import pytest
import yaml  # of ml_collections
from packaged import ROOT, VERSION, WrongError

DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
COPIED = [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]

PAGES = (ROOT / "README.md", *ROOT.glob("docs/*.md"))


def patterns(text):
    """The lines of a file that are no comments."""
    return [line for line in text.splitlines() if line and line[0] != "#"]


def test_every_file_of_the_package_is_packaged():
    """By setup.py's own metadata, without building."""
    options = packaged.setup_options(ROOT)
    found = set()
    for package in options["packages"]:
        folder = ROOT / options["package_dir"].get(package, package.replace(".", "/"))
        globs = {"*.py", *options["package_data"].get("", ()), *options["package_data"].get(package, ())}
        found |= {f"{package.replace('.', '/')}/{path.name}" for glob in globs for path in folder.glob(glob)}
    assert found == {name for name in packaged.of_wheel(ROOT) if not name.endswith(".pyc")}
    for name in ("py.typed", "configs/smoke.py", "report/page/page.css", "measure/results.schema.json"):
        assert any(f"side_jax/{name}" == one for one in found), sorted(found)


def test_every_place_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (citation["version"], str(citation["date-released"])) == newest.groups()
    assert newest[1] == VERSION == packaged.setup_options(ROOT)["version"]
    wheels = {name for page in PAGES for name in re.findall(r"side_jax-[\w.]+?-", page.read_text())}
    assert wheels == {f"side_jax-{VERSION}-"}


def test_the_page_on_installing_names_every_extra():
    rows = re.findall(r"^\| (`\w.*?) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(packaged.setup_options(ROOT)["extras_require"])


def wheel_of(path, names, metadata):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
        for name, content in metadata.items():
            archive.writestr(f"side_jax-{VERSION}.dist-info/{name}", content)
    return path


def test_what_a_wheel_lacks_or_has_too_much_is_named(tmp_path):
    names = packaged.of_wheel(ROOT)
    css = next(name for name in names if name.endswith(".css"))
    wheel = wheel_of(tmp_path / "a.whl", names - {css} | {"tests/conftest.py"}, {"METADATA": ""})
    found, metadata = packaged.in_wheel(wheel)
    assert metadata == {"METADATA": ""}
    with pytest.raises(WrongError, match=f"^it lacks {css}; it holds, and should not, tests/conftest.py$"):
        packaged.compare("it", found, names)
    packaged.compare("it", names, names)


def test_metadata_are_those_of_setup():
    setup = packaged.setup_options(ROOT)
    extras = "".join(f"Provides-Extra: {name}\n" for name in setup["extras_require"])
    head = f"Metadata-Version: 2.4\nName: side_jax\nVersion: {VERSION}\nRequires-Python: >=3.11\n{extras}"
    commands = "[console_scripts]\n" + "\n".join(setup["entry_points"]["console_scripts"])
    good = {"METADATA": f"{head}\n# side_jax\n", "entry_points.txt": commands, "licenses/LICENSE": "Apache"}
    packaged.check_metadata(good, setup)
    for name, content, said in (
        ("METADATA", good["METADATA"].replace(VERSION, "0.0"), f"lack `Version: {VERSION}`"),
        ("METADATA", good["METADATA"].replace("Provides-Extra: hub\n", ""), "extras lacks hub"),
        ("METADATA", good["METADATA"].replace(">=3.11", ">=3.9"), "lack `Requires-Python"),
        ("entry_points.txt", commands.replace("side-jax-train = ", "train = "), "commands lacks side-jax-train = "),
        ("licenses/LICENSE", None, "lack LICENSE"),
    ):
        bad = {key: value for key, value in (good | {name: content}).items() if value is not None}
        with pytest.raises(WrongError, match=said):
            packaged.check_metadata(bad, setup)


def test_a_source_distribution_has_one_folder_and_no_litter(tmp_path):
    def archive(*names):
        path = tmp_path / "side_jax-1.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        return path

    made = ("PKG-INFO", "setup.cfg", "side_jax.egg-info/SOURCES.txt", "side_jax.egg-info/PKG-INFO")
    found = packaged.in_source(archive(*(f"side_jax-1/{name}" for name in ("LICENSE", "tests/a.py", *made))))
    assert found == {"LICENSE", "tests/a.py"}
    with pytest.raises(WrongError, match="unpacks to other, side_jax-1"):
        packaged.in_source(archive("side_jax-1/LICENSE", "other/x"))


def test_the_copy_that_is_built_has_no_litter_but_all_else(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    copied = packaged.of_source(packaged.copy(tmp_path))
    assert {"LICENSE", "setup.py", "tests/test_packaging.py", "docs/index.md", ".ci/run", "launch/Dockerfile"} <= copied
    assert copied.isdisjoint(packaged.LITTER)
    assert {name for name in packaged.of_wheel(tmp_path) if "/configs/" not in name} <= copied


def ignored(name):
    """Whether Docker leaves a file out: the last line of .dockerignore that matches it or a folder above it decides."""
    parts = name.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    state = False
    for line in patterns((ROOT / ".dockerignore").read_text()):
        glob = line.lstrip("!")
        deep = glob.removeprefix("**/")
        names = above if deep == glob else [one.rpartition("/")[2] for one in above]
        if any(fnmatchcase(one, deep) for one in names):
            state = line[0] != "!"
    return state


def test_the_image_is_made_of_what_the_wheel_is_made_of(tmp_path):
    """By the lines of Dockerfile and .dockerignore: no machine of this project builds images."""
    kept = {line[1:] for line in patterns((ROOT / ".dockerignore").read_text()) if line[0] == "!"}
    assert kept == set(COPIED)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    assert packaged.of_wheel(tmp_path) == packaged.of_wheel(ROOT)
    setup = packaged.setup_options(tmp_path)  # which reads other files
    assert setup["install_requires"] == packaged.setup_options(ROOT)["install_requires"]
    assert (set(setup["packages"]), setup["version"]) == (set(packaged.setup_options(ROOT)["packages"]), VERSION)
    for name in packaged.LITTER:
        if name.startswith(("side_jax/__pycache__", "configs/", "docs/", "runs/", ".venv/", "tests/", "dist/")):
            assert ignored(name), name
    assert not any(ignored(name) for name in ("side_jax/main.py", "side_jax/report/page/page.css", "configs/smoke.py"))


def test_the_image_runs_as_a_user_with_known_extras():
    stages = DOCKERFILE.split("\nFROM ")[1:]
    assert len({stage.split()[0] for stage in stages}) == 1
    assert re.match(r"python:3\.\d+-slim\n", stages[-1])
    assert re.search(r"^USER [1-9]\d*:\d+$", stages[-1], re.MULTILINE)
    default = re.search(r"^ARG EXTRAS=(.*)$", stages[-1], re.MULTILINE)[1].split(",")
    assert set(default) <= set(packaged.setup_options(ROOT)["extras_require"])
    assert 'ENTRYPOINT ["side-jax"]' in stages[-1]
    assert "WORKDIR /audit" in stages[-1]


def test_hadolint_is_asked_for_only_where_it_is():
    (line,) = (one for one in packaged.setup_options(ROOT)["extras_require"]["lint"] if "hadolint" in one)
    requirement = pytest.importorskip("packaging.requirements").Requirement(line)
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    assert requirement.marker.evaluate(linux)
    for other in ({"sys_platform": "darwin"}, {"sys_platform": "win32"}, {"platform_machine": "aarch64"}):
        assert not requirement.marker.evaluate(linux | other)
