"""The memorisation divergence in a sentence: how much nearer to its training images the model is."""

from side_jax.measure.records import Divergence, Estimate


def sentence(divergence: Divergence, *, latent: bool = False) -> str:
    """What the memorisation divergence of an audit is and means.

    Args:
      divergence: of results.json.
      latent: whether it is that of a model's latents.
    """
    at = f"memorisation divergence{' of latents' if latent else ''} at noise {divergence.epsilon:g}"
    near, far, lead = divergence.members, divergence.heldout, divergence.difference
    if near is None or far is None or lead is None:
        return (
            f"The {at} is not known: of {divergence.unsolved} of {2 * divergence.draws} points, the likelihood could "
            "not be computed."
        )

    def size(value: Estimate) -> str:
        return f"{value.estimate:.1f} (standard error {value.standard_error:.1f})"

    values = f"{at}: {size(near)} nats, around as many unseen images {size(far)}"
    if abs(lead.estimate) < 2 * lead.standard_error:
        return (
            "Judged by its own likelihood, the model is as far from its training images as from images that it never "
            f"saw ({values}; smaller is nearer)."
        )
    where = (
        "nearer to its training images than to" if lead.estimate > 0 else "farther from its training images than from"
    )
    return (
        f"Judged by its own likelihood, the model is {abs(lead.estimate):.1f} nats {where} images that it never saw "
        f"({values}; smaller is nearer, and a model that had learned only what both have in common would be as near to "
        "both)."
    )
