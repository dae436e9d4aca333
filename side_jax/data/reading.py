"""Counts what reading a set of pictures left out or changed."""

from collections.abc import Iterable, Mapping
from typing import Any

from side_jax.data.decode import WHITE, Facts, Rules
from side_jax.errors import InputError

DARK = WHITE // 8  # the largest value of 13 bits; a set of 16-bit pictures that stays below comes out nearly black


def summary(facts: Iterable[Facts], passed_over: Mapping[str, int], rules: Rules, where: str) -> dict[str, Any]:
    """Returns the counts, with the fields of measure.records.Reading.

    Args:
      facts: of each picture.
      passed_over: number of files that are not read, by their kind.
      rules: by which the pictures were converted.
      where: what sentences call the set.

    Raises:
      InputError: if all 16-bit pictures are so dark that their values must have another range.
    """
    facts = list(facts)
    deep = [fact.largest for fact in facts if fact.largest is not None]
    if deep and max(deep) <= DARK and not rules.bit_range:
        raise InputError(
            f"the {len(deep)} pictures of 16 bits in {where} have no value above {max(deep)} of {WHITE}, so they would "
            f"be nearly black; set data.bit_range to the value that is white, such as 4095 for scans of 12 bits (or "
            f"{WHITE} if they are meant to be dark)."
        )
    return {
        "passed_over": dict(sorted(passed_over.items())),
        "rotated": sum(fact.rotated for fact in facts),
        "animated": sum(fact.animated for fact in facts),
        "reshaped": sum(fact.reshaped for fact in facts),
        "sixteen_bit": len(deep),
        "windowed": sum(fact.range == "window" for fact in facts),
        "full_range": sum(fact.range == "bits" for fact in facts),
        "percentiles": sum(fact.range == "percentiles" for fact in facts),
        "inverted": sum(fact.inverted for fact in facts),
        "orientation": rules.orientation,
        "fit": rules.fit,
    }
