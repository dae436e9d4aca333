"""What lowers extraction: the last table of a page, from the project's own measurements."""

from side_jax.report import terms
from side_jax.report.page import model

# Rows of the table in docs/results_defences.md, which says how they were measured; a test holds them together. Of each
# training: the members that mode seeking extracts, the mean of three seeds; of how many; and the Frechet distance.
MEASURED = {
    "none, 450 steps": (29.7, 64, 2.23),
    "fewer steps": (6.3, 64, 2.26),
    "dropout 0.3": (4.7, 64, 2.24),
    "mirrored at random": (9.0, 64, 3.04),
    "2 times the images": (0.3, 128, 2.16),
    "4 times the images": (0.0, 256, 2.11),
    "no deduplication: an eighth of the images 8 times": (10.3, 64, 3.38),
    "DP-SGD, noise 0.1": (0.7, 64, 2.32),
}
# What the page calls them, in its order.
_SHOWN = {
    "none, 450 steps": "none, trained to 450 steps",
    "fewer steps": "stopped when the samples were as good, at some 270 steps",
    "dropout 0.3": "dropout 0.3",
    "mirrored at random": "images mirrored at random; the samples are worse",
    "2 times the images": "twice as many images",
    "4 times the images": "four times as many images",
    "no deduplication: an eighth of the images 8 times": "an eighth of the images repeated 8 times, not removed",
    "DP-SGD, noise 0.1": "DP-SGD with too little noise for a guarantee",
}

_COLUMNS = (
    model.Column(label="Change"),
    model.Column(label="Members that mode seeking extracts", kind="number"),
    terms.column("Frechet distance"),
)


def table() -> model.Table:
    """What each change of the training does."""
    rows = []
    for name, shown in _SHOWN.items():
        found, members, distance = MEASURED[name]
        share = found / members
        rows.append(
            (
                model.Cell(text=shown),
                model.Cell(text=f"{found:.1f} of {members} ({100 * share:.0f}%)", sort=share),
                model.Cell(text=f"{distance:.2f}", sort=distance),
            )
        )
    return model.Table(
        caption="What changes of the training did to small models of handwritten digits",
        columns=_COLUMNS,
        rows=tuple(rows),
        note="More images and an early stop lower extraction most. These are other models than yours: means of three "
        "trainings on 64 handwritten digits, compared at equal sample quality where they reach it. Only another audit "
        "tells what a change does for your model. How this was measured: docs/results_defences.md of side_jax.",
    )
