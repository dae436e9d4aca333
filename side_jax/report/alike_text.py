"""The scan of a conditional model's labels in a sentence: whether any looks planted."""

from side_jax.measure.records import LabelSpread
from side_jax.report.phrases import percent

NAMED = 10  # labels that a sentence names, at most


def sentence(scan: LabelSpread) -> str:
    """What the scan found, and how often it would in a clean model."""
    if scan.undecided:
        return f"Whether any label looks planted is not decided: {scan.undecided}."
    basis = (
        f"a spread of {scan.images} images below {scan.below:.2g}, where the median is {scan.median:.2g}; in at most "
        f"{percent(scan.false_alarms)} of clean models any label is, if the logarithms of their spreads follow one "
        "normal law"
    )
    looked = f"of the {scan.scanned:,} labels scanned"
    if scan.scanned < scan.labels:
        looked += f" (the model has {scan.labels:,})"
    if not scan.flagged:
        return f"No label looks planted: {looked}, none has images that are abnormally alike ({basis})."
    names = ", ".join(str(one.label) for one in scan.flagged[:NAMED])
    more = len(scan.flagged) - NAMED
    names += f" and {more:,} more" if more > 0 else ""
    several = len(scan.flagged) > 1
    look = f"{len(scan.flagged):,} labels look" if several else "One label looks"
    return (
        f"{look} planted, or memorised: {looked}, the images of label{'s' * several} {names} are abnormally alike "
        f"({basis}). A label with a single training image looks the same."
    )
