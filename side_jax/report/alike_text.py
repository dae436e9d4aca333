"""The scan of a conditional model's labels in a sentence: whether any is worth a look."""

from side_jax.measure.records import LabelSpread
from side_jax.memorization.label_spread import LEAST_FALL
from side_jax.report.phrases import percent

NAMED = 10  # labels that a sentence names, at most


def sentence(scan: LabelSpread) -> str:
    """What the scan found, and how often it would in a clean model; never more than that a label is worth a look."""
    if scan.undecided:
        return f"Whether any label looks planted is not decided: {scan.undecided}."
    looked = f"of the {scan.scanned:,} labels scanned"
    if scan.scanned < scan.labels:
        looked += f" (the model has {scan.labels:,})"
    law = (
        f"in at most {percent(scan.false_alarms)} of clean models any is, if the logarithms of their spreads follow "
        "one normal law, which narrow classes break"
    )
    if not scan.flagged:
        return (
            f"No label stands out: {looked}, none has images that are abnormally alike ({scan.images} of each, whose "
            f"spread is about {scan.ordinary:.2g}; {law}). A planted label that is hardly memorised does not either."
        )
    names = ", ".join(str(one.label) for one in scan.flagged[:NAMED])
    more = len(scan.flagged) - NAMED
    names += f" and {more:,} more" if more > 0 else ""
    several = len(scan.flagged) > 1
    look = f"{len(scan.flagged):,} labels are" if several else "One label is"
    kinds = "planted, or each a single memorised image" if several else "planted, or a single memorised image"
    return (
        f"{look} worth a look, {kinds}: {looked}, the images of label{'s' * several} {names} are abnormally alike (a "
        f"spread of {scan.images} images below {scan.below:.2g}, {LEAST_FALL:g} times below the {scan.ordinary:.2g} of "
        f"the others; {law})."
    )
