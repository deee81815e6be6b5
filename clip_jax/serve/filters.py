"""Conditions on the columns of rows, such as `year>=1990`, for Arrow's columns."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax.serve.refusals import bad
from clip_jax.sources.features import is_text, rounded
from clip_jax.sources.moments import moment_of
from clip_jax.sources.where import NUMBER, TRUTH, Condition, Value, parse_condition

_COMPARISONS = {
    "=": "equal",
    "in": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}
_NUMBER = rf"\A{NUMBER.pattern}\z"  # as Arrow's regular expressions have it

Comparison = Callable[[Any], Any]


def parse(text: str, types: Mapping[str, Any]) -> Condition:
    """Reads a condition as `clip_jax.sources.where` has it.

    Args:
        text: column, operator and value, such as "year>=1990", "lang in en,de" or "title~sea".
        types: the Arrow type of each column by its name.

    Raises:
        Refusal: it is no condition, there is no such column, or its values can't be compared so.
    """
    names = ", ".join(types) or "none"
    try:
        condition = parse_condition(text, types)
    except ValueError as error:
        raise bad(f"{error}; the columns are {names}") from None
    if condition.name not in types:
        raise bad(f"there is no column {condition.name!r}; the columns are {names}")
    _comparison(condition, types[condition.name])
    return condition


def matching(condition: Condition, column: Any) -> np.ndarray:
    """Returns which values of an Arrow column meet a condition, (n,) bool."""
    import pyarrow.compute as pc

    met = pc.fill_null(_comparison(condition, column.type)(column), False)
    return met.to_numpy().astype(bool, copy=False)


def _comparison(condition: Condition, type_: Any) -> Comparison:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(type_):  # categories
        inner = _comparison(condition, type_.value_type)
        return lambda column: inner(column.cast(type_.value_type))
    each = [_with(condition, value, type_) for value in condition.values]

    def either(one: Any, other: Any) -> Any:
        return pc.call_function("or_kleene", [one, other])

    return lambda column: functools.reduce(either, (met(column) for met in each))


def _with(condition: Condition, value: Value, type_: Any) -> Comparison:
    """Returns the comparison of a column with one value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    name, sign = condition.name, condition.operator
    example = f"{name} in " if sign == "in" else name + sign
    if sign == "~":
        if not is_text(type_):
            raise bad(f"~ is for columns of text; {name} is {type_}")
        options = pc.MatchSubstringOptions(value.text, ignore_case=True)
        return lambda column: pc.call_function("match_substring", [column], options)
    compare: Callable[..., Any] = getattr(pc, _COMPARISONS[sign])
    if is_text(type_):
        if value.number is None:
            return lambda column: compare(column, pa.scalar(value.text, column.type))
        # In tables of text, such as CSV files, numbers are text too; != holds of any other text.
        number, is_not = float(value.text), sign == "!="  # an int may be beyond all floats

        def compared(column: Any) -> Any:
            met = pc.fill_null(compare(_numbers(column), number), is_not)
            return pc.call_function("and", [met, column.is_valid()])

        return compared
    if pa.types.is_boolean(type_):
        truth = TRUTH.get(value.text.lower())
        if truth is None or sign not in ("=", "!=", "in"):
            raise bad(f"{name} is true or false: {name}=true. Got {sign}{value.text}")
        return lambda column: compare(column, truth)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        wanted = _number(value)
        if wanted is None:
            raise bad(f"{name} has numbers: {example}10. Got {value.text!r}")
        if pa.types.is_float32(type_) or pa.types.is_float16(type_):
            kind = np.float32 if pa.types.is_float32(type_) else np.float16
            wanted = rounded(kind, wanted)
        return lambda column: compare(_comparable(column, wanted), wanted)
    if pa.types.is_timestamp(type_) or pa.types.is_date(type_):
        moment = moment_of(value.text)
        if moment is None:
            raise bad(
                f"{name} has times: {example}2020-01-31 or {example}2020-01-31T12:30. "
                f"Got {value.text[:40]!r}"
            )
        scalar = pa.scalar(moment, pa.timestamp("us"))
        return lambda column: compare(column.cast(scalar.type, safe=False), scalar)
    if pa.types.is_time(type_):  # as they are written, in which order they come, too
        return lambda column: compare(column.cast(pa.string()), value.text)
    raise bad(f"{name} is {type_}, whose values can't be compared")


def as_numbers(column: Any) -> Any:
    """Returns an Arrow column of texts as float64; None if not all of them are numbers.

    Blank texts, such as the empty cells of a CSV file, are null.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.call_function("utf8_trim_whitespace", [column])
    is_blank = pc.call_function("equal", [texts, pa.scalar("", texts.type)])
    texts = pc.call_function("if_else", [is_blank, pa.scalar(None, texts.type), texts])
    try:
        found = texts.cast(pa.float64())
    except pa.ArrowException:
        return None
    return None if found.null_count == len(found) > column.null_count else found


def _numbers(column: Any) -> Any:
    """Returns the numbers of an Arrow column of texts as float64; null for other texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.call_function("utf8_trim_whitespace", [column])
    options = pc.MatchSubstringOptions(_NUMBER)
    are = pc.call_function("match_substring_regex", [texts], options)
    plain = pc.call_function("utf8_ltrim", [texts], pc.TrimOptions("+"))
    texts = pc.call_function("if_else", [are, plain, pa.scalar(None, plain.type)])
    return texts.cast(pa.float64())


def _number(value: Value) -> int | float | None:
    number = value.number
    if number is None:
        try:
            return float(value.text)  # inf, too
        except ValueError:
            return None
    fits = isinstance(number, float) or -(2**63) <= number < 2**63
    return number if fits else float(value.text)


def _comparable(column: Any, number: float) -> Any:
    import pyarrow as pa

    is_whole = pa.types.is_integer(column.type) and isinstance(number, int)
    return column if is_whole and column.type != pa.uint64() else column.cast(pa.float64(), False)
