"""Conditions on the columns of rows, such as `year>=1990`."""

import dataclasses
import datetime
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax.serve.refusals import bad
from clip_jax.sources.moments import moment_of

# "~": contains, whatever the case of the letters.
OPERATORS = ("!=", "<=", ">=", "=", "<", ">", "~")
_COMPARISONS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """A condition on a column; rows without a value don't meet it.

    Attributes:
        column: the column's name.
        operator: one of `OPERATORS`.
        value: the value to compare with, as text.
    """

    column: str
    operator: str
    value: str


def parse(text: str, types: Mapping[str, Any]) -> Condition:
    """Reads a condition.

    Args:
        text: column, operator and value, such as "year>=1990", "lang=en" or "title~sea".
        types: the Arrow type of each column by its name.

    Raises:
        Refusal: it is no condition, there is no such column, or its values can't be compared so.
    """
    # Names may hold operators themselves.
    for name in sorted(types, key=len, reverse=True):
        rest = text.removeprefix(name).lstrip()
        found = next((o for o in OPERATORS if rest.startswith(o)), None)
        if text.startswith(name) and found:
            condition = Condition(name, found, rest.removeprefix(found).strip())
            _comparison(condition, types[name])
            return condition
    names = ", ".join(types) or "none"
    found = re.split("[!<>=~]", text, maxsplit=1)
    if len(found) == 2 and found[0].strip():
        raise bad(f"there is no column {found[0].strip()!r}; the columns are {names}")
    raise bad(
        f"where must be a column, one of {' '.join(OPERATORS)}, and a value, such as year>=1990. "
        f"Got {text!r}; the columns are {names}"
    )


def matching(condition: Condition, column: Any) -> np.ndarray:
    """Returns which values of an Arrow column meet a condition, (n,) bool."""
    import pyarrow.compute as pc

    met = pc.fill_null(_comparison(condition, column.type)(column), False)
    return met.to_numpy().astype(bool, copy=False)


def _comparison(condition: Condition, type_: Any) -> Callable[[Any], Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    name, operator, value = condition.column, condition.operator, condition.value
    if pa.types.is_dictionary(type_):  # categories
        inner = _comparison(condition, type_.value_type)
        return lambda column: inner(column.cast(type_.value_type))
    if operator == "~":
        if not is_text(type_):
            raise bad(f"~ is for columns of text; {name} is {type_}")
        options = pc.MatchSubstringOptions(value, ignore_case=True)
        return lambda column: pc.call_function("match_substring", [column], options)
    compare: Callable[..., Any] = getattr(pc, _COMPARISONS[operator])
    if is_text(type_):
        number = _number(value)

        def compared(column: Any) -> Any:
            # In tables of text, such as CSV files, numbers are text too.
            numbers = None if number is None else as_numbers(column)
            if numbers is None or number is None:
                return compare(column, pa.scalar(value, column.type))
            return compare(numbers, float(number))

        return compared
    if pa.types.is_boolean(type_):
        truth = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
        if truth is None or operator not in ("=", "!="):
            raise bad(f"{name} is true or false: {name}=true. Got {operator}{value}")
        return lambda column: compare(column, truth)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        wanted = _number(value)
        if wanted is None:
            raise bad(f"{name} has numbers: {name}{operator}10. Got {value!r}")
        return lambda column: compare(_comparable(column, wanted), wanted)
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        moment = pa.scalar(_moment(name, operator, value), pa.timestamp("us"))
        return lambda column: compare(column.cast(moment.type, safe=False), moment)
    if pa.types.is_time(type_):  # as they are written, in which order they come, too
        return lambda column: compare(column.cast(pa.string()), value)
    raise bad(f"{name} is {type_}, whose values can't be compared")


def is_text(type_: Any) -> bool:
    """Whether an Arrow type is one of strings."""
    import pyarrow as pa

    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def as_numbers(column: Any) -> Any:
    """Returns an Arrow column of texts as float64; None if not all of them are numbers."""
    import pyarrow as pa

    try:
        return column.cast(pa.float64())
    except pa.ArrowException:
        return None


def _number(text: str) -> int | float | None:
    try:
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        return None


def _moment(name: str, operator: str, value: str) -> datetime.datetime:
    moment = moment_of(value)
    if moment is None:
        raise bad(
            f"{name} has times: {name}{operator}2020-01-31 or {name}{operator}2020-01-31T12:30. "
            f"Got {value[:40]!r}"
        )
    return moment


def _comparable(column: Any, number: float) -> Any:
    import pyarrow as pa

    is_whole = pa.types.is_integer(column.type) and isinstance(number, int)
    return column if is_whole and column.type != pa.uint64() else column.cast(pa.float64(), False)
