"""Numbers and the like in place of words: a model has learnt nothing of what they stand for."""

import re
import warnings
from collections.abc import Iterable

from clip_jax.sources.records import Pairs

# Texts for names which are somewhere else; WordNet's numbers are as ImageNet has them.
_STAND_INS = {
    "numbers": re.compile(r"[+-]?\d+(\.\d*)?"),
    "WordNet's numbers": re.compile(r"n\d{8}"),
    "true or false": re.compile(r"true|false", re.IGNORECASE),
    "numbers of classes": re.compile(r"(class|label|category|cluster|id)[\s_-]*\d+", re.I),
}


def stand_ins(texts: Iterable[str]) -> str:
    """Returns what all of these texts are, such as "numbers"; empty if they are words, or none."""
    kinds: set[str] | None = None
    for text in texts:
        kinds = {kind for kind in kinds or _STAND_INS if _STAND_INS[kind].fullmatch(text.strip())}
        if not kinds:
            break
    return next((kind for kind in _STAND_INS if kinds and kind in kinds), "")


def warn_of_stand_ins(pairs: Pairs, source: str) -> None:
    """Warns if all captions are numbers or the like, as a column of classes holds them.

    Warns:
        UserWarning: they are. It is no error, for there are pictures of numbers.
    """
    if what := stand_ins(text for i in range(len(pairs)) for text in pairs.captions(i)):
        warnings.warn(
            f"the captions of {source} are {what}, not words, and are taken as they stand, such "
            f"as {pairs.captions(0)[0]!r}: for classes, give their names",
            stacklevel=3,
        )
