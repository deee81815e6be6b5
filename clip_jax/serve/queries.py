"""What is searched for, and the parameters of a request that say it."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from clip_jax.serve.filters import parse
from clip_jax.serve.refusals import bad
from clip_jax.sources.where import Condition

# Rows of one answer, and the last place in a ranking that can be asked for.
MOST_ROWS = 1_000
LAST = 10_000
# Characters of a text, and concepts that are added or subtracted.
MOST_CHARACTERS = 2_000
MOST_CONCEPTS = 8

SEARCH = ("q", "picture", "row", "key", "plus", "minus", "where", "k", "offset", "details", "exact")
_MANY = ("plus", "minus", "where")


@dataclasses.dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        text: a text, or nothing.
        picture: the identifier of a picture that was sent, or nothing.
        like: the number of a row that the results are to be like.
        plus: concepts that are added.
        minus: concepts that are subtracted.
    """

    text: str = ""
    picture: str = ""
    like: int | None = None
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts whose embeddings it needs."""
        return (*((self.text,) if self.text else ()), *self.plus, *self.minus)

    def is_empty(self) -> bool:
        """Whether there is nothing that results could be similar to."""
        return not (self.text or self.picture or self.plus or self.like is not None)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for rows.

    Attributes:
        query: what is searched for.
        where: the conditions that all rows meet.
        offset: how many of the best are left out, for a page after the first.
        k: how many rows.
        exact: whether to compare all rows although there is an index for approximate search.
        details: whether the answer says all that the page shows.
    """

    query: Query
    where: tuple[Condition, ...] = ()
    offset: int = 0
    k: int = 10
    exact: bool = False
    details: bool = False

    @property
    def ranking(self) -> Hashable:
        """What distinguishes the ranking of which it asks for a page."""
        return self.query, frozenset(self.where), self.exact


def parsed(
    items: Sequence[tuple[str, str]],
    types: Mapping[str, Any],
    known: Sequence[str] = SEARCH,
    last: int | None = LAST,
) -> tuple[Request, str | None]:
    """Reads the parameters of a request, and the key of the row that results are to be like.

    Args:
        items: names and values, as they stand in the address.
        types: the columns' Arrow types.
        known: the parameters that there are.
        last: the last place that can be asked for; None for all.

    Raises:
        Refusal: a parameter is unknown, given twice, or out of range.
    """
    values: dict[str, list[str]] = {}
    for name, value in items:
        if name not in known:
            raise bad(f"there is no parameter {name!r}; those known are {', '.join(known)}")
        values.setdefault(name, []).append(value)
        if name not in _MANY and len(values[name]) > 1:
            raise bad(f"{name} may be given once. Got it {len(values[name])} times")
    one = {name: found[0] for name, found in values.items()}
    text = one.get("q", "").strip()
    plus, minus = (
        tuple(v.strip() for v in values.get(name, []) if v.strip()) for name in ("plus", "minus")
    )
    for each in (text, *plus, *minus):
        if len(each) > MOST_CHARACTERS:
            raise bad(f"a text may have {MOST_CHARACTERS:,} characters. Got {len(each):,}")
    if len(plus) + len(minus) > MOST_CONCEPTS:
        raise bad(f"{MOST_CONCEPTS} concepts may be given. Got {len(plus) + len(minus)}")
    like = _whole(one, "row", 0, None) if "row" in one else None
    query = Query(text, one.get("picture", ""), like, plus, minus)
    k, offset = _whole(one, "k", 1, MOST_ROWS, 10), _whole(one, "offset", 0, None, 0)
    if last is not None and offset + k > last:
        raise bad(f"offset + k must be at most {last:,}. Got {offset + k:,}")
    where = tuple(parse(each, types) for each in dict.fromkeys(values.get("where", [])))
    if len(where) > MOST_CONCEPTS:
        raise bad(f"{MOST_CONCEPTS} conditions may be given. Got {len(where)}")
    flags = {name: _flag(one, name) for name in ("exact", "details")}
    return Request(query, where, offset, k, **flags), one.get("key")


def whole(text: str) -> int | None:
    """Returns the whole number that a text is, of at most 15 digits; None if it is none."""
    # Python refuses to read thousands of digits.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else None


def _whole(
    one: Mapping[str, str], name: str, least: int, most: int | None, default: int = 0
) -> int:
    text = one.get(name)
    if text is None:
        return default
    number = whole(text)
    if number is None or number < least or (most is not None and number > most):
        to = f"from {least} to {most:,}" if most is not None else f"from {least} on"
        raise bad(f"{name} must be a whole number {to}. Got {text[:40]!r}")
    return number


def _flag(one: Mapping[str, str], name: str) -> bool:
    if one.get(name, "0") not in ("0", "1"):
        raise bad(f"{name} must be 0 or 1. Got {one[name][:40]!r}")
    return one.get(name) == "1"
