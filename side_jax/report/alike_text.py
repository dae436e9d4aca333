"""The scan of a conditional model's labels in a sentence: whether any is worth a look."""

from side_jax.measure.records import LabelSpread
from side_jax.memorization.label_spread import LEAST_FALL

NAMED = 10  # labels that a sentence names, at most


def sentence(scan: LabelSpread) -> str:
    """What the scan found: never more than that a label is worth a look, and never that nothing is planted."""
    if scan.undecided:
        return f"Whether any label looks planted is not decided: {scan.undecided}."
    looked = f"of the {scan.scanned:,} labels scanned"
    if scan.scanned < scan.labels:
        looked += f" (the model has {scan.labels:,})"
    basis = f"the squared distance of two of its {scan.images} images is typically"
    if not scan.flagged:
        return (
            f"No label stands out: {looked}, none has images that are abnormally alike (for the most alike, {basis} "
            f"{scan.greatest_fall:.1f} times smaller than for ordinary labels). A planted label that is hardly "
            "memorised does not stand out either."
        )
    names = ", ".join(str(one.label) for one in scan.flagged[:NAMED])
    more = len(scan.flagged) - NAMED
    names += f" and {more:,} more" if more > 0 else ""
    several = len(scan.flagged) > 1
    look = f"{len(scan.flagged):,} labels are" if several else "One label is"
    kinds = "planted, or a single memorised image" + " each" * several
    return (
        f"{look} worth a look ({kinds}): {looked}, the images of label{'s' * several} {names} are abnormally alike "
        f"(for the most alike, {basis} {scan.greatest_fall:,.0f} times smaller than for ordinary labels; "
        f"{LEAST_FALL:g} are needed). How often that happens without plants depends on the classes."
    )
