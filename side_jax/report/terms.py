"""What the columns of the page's tables mean: a plain sentence for each score, shown below every table that has it."""

from side_jax.memorization.metrics import METRICS
from side_jax.report.page import model

# By the label of the column, or by its beginning where numbers follow.
TERMS = {
    "Scale": "how strongly sampling is guided; of low-rank adapters, 1 is a label without guidance",
    "Calls": "calls of the model's network for one image, with those for the image that mode seeking starts from",
    "Requests": "images asked of an API for one image, by attacks that need only an API: the one that mode seeking "
    "starts from, and one for each round; none: the attack needs more than an API, or is a control",
    "Matched (AMS)": "share of generated images that match a member, with its interval; where none matched, a "
    "one-sided bound (about 3/n), never zero",
    "Held-out matched": "share of the same images that match an image the model never saw: what chance matches",
    "Extracted": "number of different members that are the nearest one of a matching image",
    "by": "members extracted by another measure: a mode may be an average of images, which only some measures forgive",
    "Excess, points": "share of images that match one of as many members as held-out images, minus the share that "
    "match one of these",
    "p, excess": "chance of so many matched members if the model had learned nothing from them (a permutation test); "
    "small values speak of memorisation",
    "UMS, all pairs": "members in the band of any image, over the number of images, as the paper counts",
    "UMS, nearest": "members that are the nearest one of a matching image, over the number of images",
    "p, more images": "chance of so many more matching images than by plain sampling if the attack added nothing "
    "(McNemar, by image); none for a search, whose images descend from each other",
    "p, more members": "chance of so many more extracted members than by plain sampling if the attack added nothing "
    "(McNemar, by member)",
    "AMS": "share of generated images whose dissimilarity to a member lies in the band",
    "Held-out AMS": "share of generated images whose dissimilarity to a held-out image lies in the band",
    "Held-out UMS": "held-out images in the band of any image, over the number of images",
    "Threshold": "a smaller dissimilarity is a match",
    "Found": "members that the images of this run extracted",
    "Found at": "members that the first images extract, on average, for so many calls of the network",
    "Fitted law": "members expected if their chances to come out follow a beta distribution, as in the paper",
    "Chao at": "members expected from how many came out once and twice: a lower bound",
    "Chao's total": "the same for unlimited sampling, with its interval",
    "Good-Toulmin": "members expected without a law; beyond its range don't rely on it",
    "AuthPct": "percentage of images farther from their nearest member than that one is from the next; low: copying",
    "AuthPct, held-out": "AuthPct against held-out images, as its control",
    "C_T": "far below 0: images lie closer to members than held-out ones do, copying; far above: underfitting (Meehan "
    "et al. 2020)",
    "FLD-style gap": "the more negative, the more overfit (after Jiralerspong et al. 2023)",
    "Frechet to members": "Frechet distance of the images' features to those of members; lower is closer in "
    "distribution",
    "Frechet to held-out": "Frechet distance of the images' features to those of held-out images",
    "Members to held-out": "Frechet distance of the two sets: the floor",
    "AUC": "chance that the score ranks a member above a held-out image: 0.5 is guessing, 1 tells all apart",
    "True positives at": "share of members called members where so many held-out images are called so by mistake",
    "Frechet distance": "of plain samples to images that the model never saw, in pixels: the quality of the samples; "
    "smaller is better",
    "loss": "membership score: how badly the model removes noise from the image; low for what it was trained on",
    "secmi": "membership score: how far one step of sampling and back again ends from its start (Duan et al. 2023)",
    "pia": "membership score: how much the noise predicted for the image itself differs from that predicted once it is "
    "added (Kong et al. 2024)",
}


def meaning(label: str) -> str:
    """What a column means, by its label or by the longest beginning of it that is a term; "" for what is no score."""
    known = [term for term in TERMS if label == term or label.startswith((f"{term} ", f"{term},"))]
    return TERMS[max(known, key=len)] if known else ""


def column(label: str, kind: str = "number") -> model.Column:
    """A column that explains itself."""
    return model.Column(label=label, kind=kind, help=meaning(label))


def measure(name: str) -> str:
    """What a metric measures; "" for one of other versions."""
    return METRICS[name].explanation if name in METRICS else ""
