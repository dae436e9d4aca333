"""The settings reference, made from the dataclasses: section, name, type, default and meaning of every setting."""

import ast
import contextlib
import dataclasses
import inspect
import io
import textwrap
import tokenize

from side_jax.settings import Settings
from side_jax.settings.mixtures import Theory
from side_jax.settings.paths import is_path


def markdown() -> str:
    """Returns the settings reference as a Markdown page: a table for each section."""
    parts = [
        "# Settings",
        "All settings of an audit. A config file changes the defaults; `--config.SECTION.NAME=VALUE` on the command "
        "line overrides one value, such as `--config.extract.num_images=4096`. In paths, `~` is the home folder.",
        "## General",
        *_section("", Settings),
    ]
    for field in dataclasses.fields(Settings):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            parts += [f"## {field.name}", *_section(f"{field.name}.", field.type)]
    parts += [
        "## Settings of side_jax.theory",
        "The command `python -m side_jax.theory` has settings of its own.",
        *_section("", Theory),
    ]
    return "\n\n".join(parts) + "\n"


def _section(prefix: str, cls: type) -> list[str]:
    """The introduction and the table of one dataclass; sections in it have tables of their own."""
    known = meanings(cls)
    rows = [
        f"| `{prefix}{field.name}` | {_type(field)} | `{field.default!r}` | {_escaped(known[field.name])} |"
        for field in dataclasses.fields(cls)
        if not dataclasses.is_dataclass(field.type)
    ]
    table = ["| setting | type | default | meaning |", "|---|---|---|---|", *rows]
    return [inspect.getdoc(cls) or "", "\n".join(table)]


def _type(field: dataclasses.Field) -> str:
    """The type in words, such as str, path or tuple of float."""
    if is_path(field):
        return "path"
    item = getattr(field.type, "__args__", ())
    return f"tuple of {item[0].__name__}" if item else getattr(field.type, "__name__", str(field.type))


def _escaped(text: str) -> str:
    """A meaning as the cell of a table."""
    for character in "\\|*<":
        text = text.replace(character, "\\" + character)
    return (text[:1].upper() + text[1:]).removesuffix(".")


def meanings(cls: type) -> dict[str, str]:
    """The meaning of each field of a dataclass, inherited ones included.

    It is the field's metadata["meaning"] or its comment, on the field's lines or else above them.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            with contextlib.suppress(OSError):  # a class made by make_dataclass has no source
                found |= _comments(base)
    fields = dataclasses.fields(cls)
    return found | {field.name: field.metadata["meaning"] for field in fields if "meaning" in field.metadata}


def _comments(cls: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.end_lineno or node.lineno
            lines = [line for line in range(node.lineno, last + 1) if line in by_line]
            above = node.lineno - 1
            while node.lineno not in lines and above in by_line and by_line[above].line.lstrip().startswith("#"):
                lines.insert(0, above)
                above -= 1
            found[node.target.id] = " ".join(by_line[line].string.lstrip("# ") for line in lines)
    return found
