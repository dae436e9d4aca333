"""Settings of Sphinx: python -m sphinx -W --keep-going -b html docs docs/_build/html; needs the extra `docs`."""

import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import generated  # noqa: E402

import side_jax  # noqa: E402

generated.write()

project = "side_jax"
author = "the authors of side_jax"
version = release = side_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated/*.md"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"side_jax {version}"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of dataclasses are documented under "Attributes:", and not once more one by one
highlight_language = "none"  # formulas are no Python

_SECTIONS = {"Args:", "Attributes:", "Raises:", "Yields:"}
_ATTRIBUTES: dict[str, list[str]] = {}  # their docstrings, between two steps


def _escaped(text: str) -> str:
    """Text in which only `code` is markup; docstrings are not written in reStructuredText."""
    parts = re.split(r"(`[^`]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"`{part}`"
        else:
            part = re.sub(r"([\\*|`])", r"\\\1", part)
            parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)
    return "".join(parts)


def read_docstring(app, what, name, obj, options, lines) -> None:
    """Docstrings to reStructuredText, in place: indented blocks are formulas, and stay as they are.

    Sections of arguments are left to napoleon, which reads the first colon of "Returns:" as the end of a type; that
    section becomes a field here.
    """
    found, section, block, listed = [], "", False, False
    for line in lines:
        text = line.strip()
        indented = line.startswith(" ")
        if text and not indented:
            section, block = text if text in _SECTIONS | {"Returns:"} else "", False
            listed = text.startswith(("- ", "* "))
        if not text:
            found.append("")
        elif section and not indented:
            found.append(":returns:" if section == "Returns:" else text)
        elif section:
            found.append(" " * (len(line) - len(line.lstrip())) + _escaped(text))
        elif indented and not listed:
            if not block:
                found += ["", "::", ""]
            found.append(line)
            block = True
        else:
            found.append(line if not text else " " * (len(line) - len(line.lstrip())) + _escaped(text))
    lines[:] = found
    if what in ("attribute", "data", "property"):
        _ATTRIBUTES[name] = found


def restore_attribute(app, what, name, obj, options, lines) -> None:
    """Undoes what napoleon does to attributes: it takes what stands before their first colon for a type."""
    lines[:] = _ATTRIBUTES.pop(name, lines)


def skip_member(app, what, name, obj, skip, options) -> bool | None:
    """Leaves out the default of a field that is a class of another package, such as jnp.float32."""
    return True if isinstance(obj, type) and not obj.__module__.startswith("side_jax") else None


def read_signature(app, what, name, obj, options, signature, returns):
    """Signatures without what every Flax module has."""
    if signature:
        signature = re.sub(r",? ?parent: .*?name: str \| None = None", "", signature)
    return signature, returns


def setup(app) -> None:
    """Registers what happens to docstrings before and after napoleon, which has priority 500."""
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
    app.connect("autodoc-process-docstring", restore_attribute, priority=600)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-signature", read_signature)
