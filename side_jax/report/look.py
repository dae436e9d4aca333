"""The look of all figures: a colour and a mark for each attack, sizes, ticks at the values used, legends below."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from side_jax.attacks.table import ATTACKS, GIVEN, PALETTE

WIDTH = 9  # inches of every figure: 864 pixels on the page, where 9 points are 12 pixels
SOFT = "0.35"  # of what is no data: axes, thresholds
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": "0.15",
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": "0.15",
    "ytick.labelcolor": "0.15",
}
_P, _R = ParamSpec("_P"), TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draws in the shared style."""

    @functools.wraps(draw)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with plt.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return inside


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Any, np.ndarray]:
    """A figure of the shared width and so many inches high, and its axes [rows, columns]."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False, **options)


def mark(name: str, i: int = 0) -> dict[str, Any]:
    """The colour and the mark of an attack or a classifier; those of the i-th of the palette for other names."""
    known = GIVEN if name == GIVEN.name else ATTACKS.get(name)
    return {"color": known.colour, "marker": known.marker} if known else {"color": PALETTE[i % 7], "marker": "o"}


def unseen(style: dict[str, Any]) -> dict[str, Any]:
    """The same for the control by unseen images: hollow and dashed."""
    return style | {"linestyle": (0, (3, 2)), "markerfacecolor": "white", "linewidth": 1.2}


def key(label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=label, **style)


def sides() -> list[Line2D]:
    """The entries that tell training images from unseen ones, in every colour."""
    return [
        key("filled: training images", color=SOFT, marker="o", linestyle=""),
        key("hollow: unseen images (control)", color=SOFT, marker="o", linestyle="", markerfacecolor="white"),
    ]


def legend(figure: Any, entries: Sequence[Any]) -> None:
    """The legend of a figure, below its axes, in as many columns as its width has room for; the figure grows by it."""
    letters = [TextPath((0, 0), one.get_label(), size=9).get_extents().width for one in entries]
    for columns in range(len(entries), 0, -1):
        rows = math.ceil(len(entries) / columns)  # filled one column after the other
        widths = [max(letters[i : i + rows]) + 48 for i in range(0, len(entries), rows)]  # 48: the mark, and space
        if sum(widths) <= 72 * WIDTH:
            break
    figure.set_figheight(figure.get_figheight() + 0.19 * rows + 0.05)
    figure.legend(handles=entries, loc="outside lower left", ncols=columns)


def count(value: float) -> str:
    """A number of things on an axis: 1,024."""
    return f"{value:,.0f}" if value == round(value) else f"{value:,g}"


def counts_on_log(axis: Any, last: int, beyond: Iterable[float] = ()) -> None:
    """Ticks of a logarithmic axis of counts: `last` itself, a few powers below, and what lies beyond."""
    base = 4 if last & (last - 1) == 0 else 10
    below = [base**k for k in range(int(math.log(last, base)) + 2) if base**k <= last / 2.5]
    ticks_at(axis, [*below, last, *beyond])


def counts_to(axis: Any, last: int, parts: int = 2) -> None:
    """Ticks of a linear axis of counts from 0 to `last`, which is one of them."""
    step = last / parts
    if last % parts:
        found = ticker.MaxNLocator(parts, integer=True).tick_values(0, last)
        step = found[1] - found[0]
    ticks_at(axis, [*np.arange(0, last - 0.4 * step, step), last])


def ticks_at(axis: Any, values: Sequence[float]) -> None:
    """Ticks at these values and nowhere else, with the numbers as they are."""
    axis.set_major_locator(ticker.FixedLocator(values))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_locator(ticker.NullLocator())


def plain_log(axis: Any) -> None:
    """Ticks of a logarithmic axis of numbers of any size: 0.02, 0.05, 0.1."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def whole(axis: Any) -> None:
    """Ticks at whole numbers alone."""
    axis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: count(value)))


def label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names curves to the right of the axes, at the heights of their ends and never on top of each other.

    Args:
      axis: with its limits set.
      ends: (x, y, name, colour) of each curve's last point.
    """
    low, high = axis.get_ylim()
    inches = axis.figure.get_size_inches()[1] - 1.0  # about what is left to the axes
    lines = [1 + name.count("\n") for *_, name, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    heights = [9 * 1.3 * lines[i] / 72 / inches for i in order]
    places = [(ends[i][1] - low) / (high - low) for i in order]
    for k in range(1, len(order)):  # upwards, then down again from the top
        places[k] = max(places[k], places[k - 1] + (heights[k] + heights[k - 1]) / 2)
    limit = 1.02
    for k in reversed(range(len(order))):
        places[k] = min(places[k], limit - heights[k] / 2)
        limit = places[k] - heights[k] / 2
    for i, place in zip(order, places, strict=True):
        x, y, name, colour = ends[i]
        axis.annotate(
            name,
            (x, y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
