"""The memorisation divergence in a sentence: how much nearer to its training images the model is."""

from typing import Any


def sentence(found: dict[str, Any]) -> str:
    """What the memorisation divergence of an audit is and means.

    Args:
      found: the section `divergence` of results.json.
    """
    at = f"memorisation divergence at noise {found['epsilon']:g}"
    if found["unsolved"]:
        return (
            f"The {at} is not known: of {found['unsolved']} of {2 * found['draws']} points, the likelihood could not "
            "be computed."
        )

    def size(of: dict[str, float]) -> str:
        return f"{of['estimate']:.1f} (standard error {of['standard_error']:.1f})"

    nearer, error = (found["difference"][key] for key in ("estimate", "standard_error"))
    values = f"{at}: {size(found['members'])} nats, around as many unseen images {size(found['heldout'])}"
    if abs(nearer) < 2 * error:
        return (
            "Judged by its own likelihood, the model is as far from its training images as from images that it never "
            f"saw ({values}; smaller is nearer)."
        )
    where = "nearer to its training images than to" if nearer > 0 else "FARTHER from its training images than from"
    return (
        f"Judged by its own likelihood, the model is {abs(nearer):.1f} nats {where} images that it never saw "
        f"({values}; smaller is nearer, and a model that had learned only what both have in common would be as near to "
        "both)."
    )
