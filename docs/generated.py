"""Pages made from the code: the rooms, the settings, the fields of results.json and the API.

`python docs/generated.py` also brings two tables up to date, of rooms in architecture.md and of columns in
reading_a_report.md; a test compares them.
"""

import ast
import importlib
import json
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PACKAGE = ROOT / "side_jax"
GENERATED = DOCS / "_generated"
FACE = ("side_jax", "side_jax.targets")
PURE = ("diffusion", "memorization", "models")
SCHEMA = PACKAGE / "measure" / "results.schema.json"
ROOMS = re.compile(r"(<!-- rooms[^\n]*-->\n)(.*?)(<!-- end -->)", re.DOTALL)
TERMS = re.compile(r"(<!-- terms[^\n]*-->\n)(.*?)(<!-- end -->)", re.DOTALL)


def rooms() -> str:
    """The table of rooms: each folder, and the first sentence of its docstring."""
    lines = ["| room | what it holds |", "|---|---|"]
    for path in sorted(PACKAGE.glob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        first = " ".join(said.partition("\n\n")[0].split())
        lines.append(f"| `{path.parent.name}/` | {first} |")
    return "\n".join(lines) + "\n"


def terms() -> str:
    """The table of what the report's columns mean."""
    from side_jax.report.terms import TERMS as meanings

    return "\n".join(["| column | meaning |", "|---|---|", *(f"| {k} | {v} |" for k, v in meanings.items())]) + "\n"


def results() -> str:
    """The fields of results.json as tables: one for the file, and one for each list or object in it."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    top = [(name, _plain(schema, one)) for name, one in schema["properties"].items()]
    parts = [_table((name, _kind(one), one.get("description", "")) for name, one in top)]
    for name, one in top:
        inner = _plain(schema, one.get("items", one))
        if inner.get("properties"):
            fields = _fields(schema, inner, "")
            parts.append(f"### `{name}`\n\n{_table(fields)}")
    return "\n".join(parts)


def _fields(schema: dict[str, Any], one: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    for name, field in one["properties"].items():
        field = _plain(schema, field)
        yield above + name, _kind(field), field.get("description", "")
        if field.get("properties"):
            yield from _fields(schema, field, f"{above}{name}.")


def _plain(schema: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A field with what it refers to, and of alternatives the one that is not null."""
    if "$ref" in one:
        one = schema["$defs"][one["$ref"].rpartition("/")[2]] | {k: v for k, v in one.items() if k != "$ref"}
    if "anyOf" in one:
        real = [choice for choice in one["anyOf"] if choice.get("type") != "null"]
        one = _plain(schema, real[0]) | {k: v for k, v in one.items() if k != "anyOf"}
    return one


def _kind(one: dict[str, Any]) -> str:
    if "enum" in one:
        return ", ".join(f"`{choice}`" for choice in one["enum"])
    kind = one.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else kind


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    cells = (f"| `{name}` | {kind} | {said.replace('|', chr(92) + '|')} |" for name, kind, said in rows)
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *cells]) + "\n"


def settings() -> str:
    """All settings, by side_jax.settings.reference."""
    reference = importlib.import_module("side_jax.settings.reference")
    return re.sub(r"\A# .*\n+", "", reference.markdown())  # the page has that heading


def face() -> str:
    """The public face: what the package and its targets list, functions first."""
    parts = []
    for module in FACE:
        package = importlib.import_module(module)
        found = {name: isinstance(getattr(package, name), type) for name in package.__all__}
        lines = [f".. autofunction:: {module}.{name}\n" for name, is_class in found.items() if not is_class]
        lines += [f".. autoclass:: {module}.{name}\n   :members:\n" for name, is_class in found.items() if is_class]
        parts.append(f"## {module}\n\n{_rst(lines)}")
    return "\n".join(parts)


def api() -> str:
    """Each public module of the pure rooms."""
    parts = []
    for room in PURE:
        package = importlib.import_module(f"side_jax.{room}")
        names = [one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if not one.ispkg]
        parts.append(f"### side_jax.{room}\n")
        for name in sorted(names):
            if not name.rpartition(".")[2].startswith("_"):
                parts.append(f"#### {name}\n\n" + _rst([f".. automodule:: {name}\n   :members:\n"]))
    return "\n".join(parts)


def _rst(lines: list[str]) -> str:
    return "```{eval-rst}\n" + "\n".join(lines) + "```\n"


def write() -> None:
    """Writes what the pages include; files that are up to date stay, so that a second build is quick."""
    GENERATED.mkdir(exist_ok=True)
    for name, make in {"settings": settings, "results": results, "face": face, "api": api}.items():
        path, text = GENERATED / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    shutil.copyfile(SCHEMA, GENERATED / "results.schema.json")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name, place, table in (("architecture.md", ROOMS, rooms()), ("reading_a_report.md", TERMS, terms())):
        text = (DOCS / name).read_text(encoding="utf-8")
        (DOCS / name).write_text(place.sub(lambda m, made=table: m[1] + made + m[3], text), encoding="utf-8")
