"""The pages: every command in them parses, links lead somewhere, nothing is orphaned. No command is run."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml  # of ml_collections
from absl import flags
from ml_collections import config_flags

from side_jax.commands.cli import SUBCOMMANDS
from side_jax.config import default_config, from_config
from side_jax.settings import Settings
from side_jax.settings.mixtures import Theory
from side_jax.stages.stage_table import STAGES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
TEXT = {path: path.read_text(encoding="utf-8") for path in PAGES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|python3|side-jax|pip|pytest|nox|docker) [^`]+)`")
# Programs of other projects, whose options are theirs.
OTHERS = {"python3", "pip", ".", "time", "tfds", "apt-get", "pre-commit", "nox", "mkdir"}
CONFIG_FOLDERS = (ROOT / "configs", ROOT / "side_jax" / "configs")
FACE = {"audit", "audit_samples", "AuditResult", "from_diffusers", "to_diffusers", "InputError"}


def page_id(path):
    return str(path.relative_to(ROOT))


def commands(text):
    """Every command of a page as a list of words: of its shell blocks, and of code in the text that begins like one."""
    for language, block in FENCE.findall(text):
        if language in ("bash", "console"):
            yield from parsed(block)
    for code in INLINE.findall(FENCE.sub("", text)):
        yield from parsed(code)


def parsed(block):
    """Joins continued lines, fills in variables, and splits at &&; a prompt and comments are left out."""
    variables = {}
    for line in re.sub(r"\\\n", " ", block).splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if len(words) == 1 and (match := re.fullmatch(r"(\w+)=(.*)", words[0], re.DOTALL)):
            variables[match[1]] = match[2].split()
            continue
        one = []
        for word in words:
            if word == "&&":
                yield one
                one = []
            elif word.startswith("$") and word[1:] in variables:
                one += variables[word[1:]]
            else:
                one.append(word)
        if one:
            yield one


def check(words):
    """Fails unless a command could start."""
    variables = {}
    while words and (match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        variables[match[1]] = match[2]
        words = words[1:]
    if words[0] == "sbatch":
        words = [word for word in words[1:] if not word.startswith("--nodes=")]
    program, arguments = words[0], words[1:]
    if program == "python" and arguments[:2] == ["-m", "sphinx"]:
        assert Path(arguments[-2]) == Path("docs")
    elif program == "python" and arguments[0] == "-m":
        check_binary(arguments[1], arguments[2:])
    elif program.startswith("side-jax"):
        module = entry_points()[program]
        check_binary(module, arguments)
    elif program == "python" and arguments[0] == "docs/generated.py":
        assert (ROOT / arguments[0]).exists()
    elif program == "python":
        check_benchmark(ROOT / arguments[0], arguments[1:])
    elif program == "docker":
        check_docker(arguments)
    elif program.startswith("launch/"):
        check_script(ROOT / program, variables, arguments)
    elif program == "pytest":
        for argument in arguments:
            assert not argument.startswith("tests/") or (ROOT / argument).exists(), argument
    else:
        assert program in OTHERS, f"{program} is a program that this test does not know"
    for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(arguments)):
        assert set(extra.split(",")) <= extras(), extra


@functools.cache
def extras():
    tree = ast.parse((ROOT / "setup.py").read_text())
    found = next(k.value for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords
                 if k.arg == "extras_require")  # fmt: skip
    return {key.value for key in found.keys}


def entry_points():
    return dict(re.findall(r'"(side-jax[\w-]*) = ([\w.]+):', (ROOT / "setup.py").read_text()))


@functools.cache
def help_of(module, mode):
    """What --help prints, from which the flags are read."""
    out, argv = io.StringIO(), sys.argv
    sys.argv = [module, *mode, "--help"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            importlib.import_module(module).main()
    finally:
        sys.argv = argv
    return out.getvalue()


def check_binary(module, arguments):
    assert importlib.util.find_spec(module), module
    modes = {"--samples": ("--samples=x",), "--suspects": ("--suspects",)}
    mode = next((more for flag, more in modes.items() if any(a.split("=")[0] == flag for a in arguments)), ())
    if module == "side_jax.main" and arguments and arguments[0] in SUBCOMMANDS:
        mode, arguments = (arguments[0],), arguments[1:]
        if mode == ("compare",):  # of folders
            arguments = [argument for argument in arguments if argument.startswith("-")]
    text = help_of(module, mode)
    known = {name.replace("-", "_") for name in re.findall(r"--(?:\[no\])?([a-z][\w-]*)", text)} | {"help", "suspects"}
    for argument in arguments:
        match = re.fullmatch(r"--([a-z][\w-]*)(?:\.[\w.\[\]]+)?(=.*)?", argument, re.DOTALL)
        assert match, f"{argument} is not a flag"
        assert match[1].replace("-", "_") in known, f"{argument} is not in the help of {module}:\n{text}"
        if match[1] == "stages":
            assert set(match[2][1:].split(",")) <= STAGES.keys(), argument
    check_config(arguments, Theory if module.endswith(".theory") else Settings)


def check_config(arguments, cls=Settings):
    """The named config exists, and the overrides give valid settings, by the parser that the package uses."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    config = default_config(cls)
    if named:
        name, _, argument = named[0].partition(":")
        paths = [ROOT / name, *(folder / f"{name}.py" for folder in CONFIG_FOLDERS)]
        path = next((path for path in paths if path.is_file()), None)
        assert path, f"the config {name} does not exist"
        config = runpy.run_path(str(path))["get_config"](*([argument] if argument else []))
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    if any(argument.startswith("--model=") for argument in arguments):  # of `audit`, which names the images too
        audited = {"target.path": "x", "data.name": "folder", "data.path": "x", "data.heldout_from": "x"}
        overrides += [f"--config.{name}={value}" for name, value in audited.items()]
    # In a loop over seeds a page writes S for a number.
    overrides = ["--config.seed=0" if argument == "--config.seed=S" else argument for argument in overrides]
    values = flags.FlagValues()
    argv = ["test", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    assert values(argv) == ["test"]
    from_config(values.config, cls)


def options_of(path):
    """The options of a benchmark, by name, and whether each is required; of the modules beside it that it uses, too."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                beside = path.parent / f"{name}.py"
                found |= options_of(beside) if name == "contest" and beside.exists() else {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        name = getattr(node.args[0], "value", "")
        required = any(k.arg == "required" and k.value.value is True for k in node.keywords)
        if node.func.attr == "add_argument":
            found[name.lstrip("-")] = required
        elif node.func.attr.startswith("DEFINE_"):
            found[name] = required
    return found


def check_benchmark(path, arguments):
    assert path.is_file(), path
    known = options_of(path)
    given = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
    plain = {name for name in given if not name.startswith("config.")}
    assert plain <= known.keys(), f"{path.name} has no option {plain - known.keys()}"
    assert {name for name, required in known.items() if required} <= given, f"{path.name} needs {known}"
    check_config(arguments)


def check_docker(arguments):
    """Of a build, the Dockerfile and the extras; of a run, what the command in the image is given."""
    if arguments[0] == "run":
        place = next(i for i, word in enumerate(arguments) if re.fullmatch(r"side-jax(:\w+)?", word))
        options = arguments[1:place]
        program = options[options.index("--entrypoint") + 1] if "--entrypoint" in options else "side-jax"
        mounted = [options[i + 1].split(":")[1] for i, word in enumerate(options) if word == "-v"]
        for path in re.findall(r"=(/\w+)", " ".join(arguments[place + 1 :])):
            assert path in mounted, f"{path} is not mounted"
        check_binary(entry_points()[program], arguments[place + 1 :])
    elif arguments[0] == "build":
        assert (ROOT / arguments[arguments.index("-f") + 1]).is_file()
        given = dict(word.split("=") for word in arguments if word.startswith("EXTRAS="))
        assert set(given.get("EXTRAS", "hub").split(",")) <= extras()
    else:
        assert arguments[0] == "stop"


def check_script(path, variables, arguments):
    assert path.is_file(), path
    text = path.read_text()
    if "setup.sh" in text or "tpu_vm.sh" in text:
        text += (ROOT / "launch" / "setup.sh").read_text()
    needed = set(re.findall(r": \"\$\{(SIDE_\w+):\?", text))
    assert needed <= variables.keys(), f"{path.name} needs {needed - variables.keys()}"
    check_config([f"--config={variables['SIDE_CONFIG']}", *arguments])


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_parse(path):
    for words in commands(TEXT[path]):
        check(words)


def test_the_job_of_a_ci_system_would_run():
    """The YAML is a workflow whose commands parse; it keeps the page that its audit writes."""
    text = TEXT[DOCS / "gate.md"]
    (job,) = (yaml.safe_load(block) for language, block in FENCE.findall(text) if language == "yaml")
    steps = job["jobs"]["audit"]["steps"]
    ran = [words for step in steps for words in parsed(step.get("run", ""))]
    for words in ran:
        check(words)
    audit = next(words for words in ran if words[0] == "side-jax-evaluate")
    options = dict(word.removeprefix("--").split("=", 1) for word in audit[1:])
    kept = next(step["with"]["path"] for step in steps if step.get("if") == "always()")
    assert kept == f"{options['out']}/index.html"
    assert options["fail-above"] == "1%"


def test_every_kind_of_command_is_there():
    """Else this file would check nothing without anyone noticing."""
    found = {tuple(words[:3]) for text in TEXT.values() for words in commands(text)}
    for binary in ("main", "train", "extract", "evaluate", "theory"):
        assert any(words[1:] == ("-m", f"side_jax.{binary}") for words in found), binary
    programs = {words[1].partition("/")[0] for words in found if words[0] == "python"}
    assert "benchmarks" in programs
    assert sum(len(list(commands(text))) for text in TEXT.values()) > 40


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python -m side_jax.nothing --workdir=a", "side_jax.nothing"),
        ("python -m side_jax.main --config=configs/nothing.py --workdir=a", "does not exist"),
        ("python -m side_jax.main --workdirs=a", "not in the help"),
        ("python -m side_jax.main --workdir=a --stages=train,nap", "stages"),
        ("python -m side_jax.main --workdir=a --config.extract.nothing=1", "nothing"),
        ("python -m side_jax.main --workdir=a --config.extract.num_images=-1", "num_images"),
        ("side-jax compare a b --outs=c", "not in the help"),
        ("side-jax verify a --workdir=b", "is not a flag"),
        ("docker run --rm side-jax --config=nothing --workdir=a", "does not exist"),
        ("docker run --entrypoint side-jax-evaluate side-jax --samples=a --output=b", "not in the help"),
        ("docker run -v b:/b:ro side-jax --workdir=a --config.data.path=/c", "/c is not mounted"),
        ("docker build -f launch/Dockerfile --build-arg EXTRAS=gpu .", "gpu"),
        ("python benchmarks/nothing.py", "nothing.py"),
        ("python benchmarks/seeds.py --config=configs/digits.py --workdir=a --seed 3", "no option"),
        ("python benchmarks/seeds.py --workdir=a", "needs"),
        ("SIDE_CONFIG=configs/celeba.py launch/gpu.sh", "SIDE_WORKDIR"),
        ("pip install -e '.[nothing]'", "nothing"),
        ("pytest tests/nothing", "nothing"),
        ("curl example.org", "does not know"),
    ],
)
def test_wrong_commands_are_found(command, reason):
    [words] = parsed(command)
    with pytest.raises(Exception, match=re.escape(reason)):
        check(words)


def test_commands_are_split_as_a_shell_does():
    block = "x=\"python a.py --b\"\n$x --c='d e' \\\n    --f # g\nA=1 python h && $x\n"
    assert list(parsed(block)) == [
        ["python", "a.py", "--b", "--c=d e", "--f"],
        ["A=1", "python", "h"],
        ["python", "a.py", "--b"],
    ]


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_python_examples_name_what_there_is(path):
    for language, block in FENCE.findall(TEXT[path]):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                wanted = {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "side_jax":
                wanted = {("side_jax", node.attr)}
            else:
                continue
            for module, name in wanted:
                found = hasattr(importlib.import_module(module), name)
                # The face is made by another change; a name outside it is never right.
                assert found or (module == "side_jax" and name in FACE), f"{module}.{name}"


def anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXT[path])):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        assert to.is_file(), f"{target} does not exist"
        assert to.is_relative_to(ROOT.resolve())
        assert not anchor or anchor in anchors(to.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("path", [path for path in PAGES if path.name != "CHANGELOG.md"], ids=page_id)
def test_files_that_pages_name_exist(path):
    pattern = r"\b((?:side_jax|configs|benchmarks|launch|tests|docs)/[\w./]+\.(?:py|md|sh|sbatch|ipynb))\b"
    for name in re.findall(pattern, TEXT[path]):
        assert (ROOT / name).exists(), name


def test_images_are_shown():
    """By some page, with a text for those who can't see them."""
    shown = set()
    for path, text in TEXT.items():
        for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
            assert len(alt) > 20, target
            shown.add((path.parent / target).resolve())
    there = {path.resolve() for path in DOCS.rglob("*.png") if "_build" not in path.parts}
    assert there == shown


def test_pages_are_in_the_contents():
    listed = set(re.findall(r"^([a-z0-9_]+)$", TEXT[DOCS / "index.md"], re.MULTILINE))
    assert listed == {path.stem for path in DOCS.glob("*.md")} - {"index"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6144


def test_picture_of_the_report_is_small():
    assert (DOCS / "images" / "report_top.png").stat().st_size < 150_000


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_no_path_of_a_developers_machine(path):
    for word in ("/root/", "/home/", "/tmp/", "C:\\"):
        assert word not in TEXT[path], word


def test_the_table_of_rooms_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import generated

    [(_, table, _)] = generated.ROOMS.findall(TEXT[DOCS / "architecture.md"])
    assert table == generated.rooms(), "run `python docs/generated.py`"
    assert len(table.splitlines()) > 10
    [(_, table, _)] = generated.TERMS.findall(TEXT[DOCS / "reading_a_report.md"])
    assert table == generated.terms(), "run `python docs/generated.py`"
