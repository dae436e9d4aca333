"""Figures for the report, drawn by matplotlib."""

import io
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

_COLOURS = {"unconditional": "0.45", "conditional": "tab:orange", "side": "tab:blue"}


def guidance(rows: list[dict[str, Any]]) -> bytes:
    """AMS and extracted members against the guidance scale, with the held-out control dashed: a PNG.

    Args:
      rows: of results.json, all of one metric.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for attack, colour in _COLOURS.items():
        own = sorted((row for row in rows if row["attack"] == attack), key=lambda row: row["guidance_scale"])
        if not own:
            continue
        x = [row["guidance_scale"] for row in own]
        for axis, key, factor in ((axes[0], "ams", 100), (axes[1], "unique", 1)):
            y = [factor * row[key] for row in own]
            control = [factor * row[f"heldout_{key}"] for row in own]
            if attack == "unconditional":
                axis.axhline(y[0], color=colour, label=attack)
                axis.axhline(control[0], color=colour, linestyle="--")
                continue
            axis.plot(x, y, color=colour, marker="o", label=attack)
            axis.plot(x, control, color=colour, marker=".", linestyle="--")
        if attack != "unconditional":
            low, high = ([100 * row["ams_ci"][i] for row in own] for i in (0, 1))
            axes[0].fill_between(x, low, high, color=colour, alpha=0.15)
    axes[0].set_ylabel("matched images (AMS), %")
    axes[1].set_ylabel("different members extracted")
    for axis in axes:
        axis.set_xlabel("guidance scale (dashed: held-out control)")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_ylim(bottom=0)
        axis.legend()
    buffer = io.BytesIO()
    # No software version or date inside the file: the same results give the same bytes.
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
