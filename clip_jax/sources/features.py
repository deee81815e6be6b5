"""What a Parquet file's schema says of its columns: which hold pictures, and the names of classes.

Hugging Face's data sets say it in the schema's metadata, under "huggingface".
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.sources.moments import as_written, moment_of
from clip_jax.sources.where import TRUTH, Condition, Value, Where

# What img2dataset and WebDataset's tar files, turned into Parquet, call a column of pictures.
BYTES_NAMES = ("jpg", "jpeg", "png", "webp", "img")


def picture_columns(schema: Any) -> list[str]:
    """Returns the names of the columns that hold whole pictures, as far as a schema tells."""
    told = _features(schema)
    found = []
    for field in schema:
        if not_pictures(schema, field.name):
            continue
        if _kind(told.get(field.name)) == "Image":
            found.append(field.name)
        elif _is_bytes(field.type) and field.name in BYTES_NAMES:
            found.append(field.name)
        elif _is_struct(field.type):
            found.append(field.name)
    return found


def not_pictures(schema: Any, name: str) -> str:
    """Returns what a column is if it can't hold pictures; an empty string if it can."""
    from pyarrow import types

    type_, kind = schema.field(name).type, _kind(_features(schema).get(name))
    if kind not in (None, "Image", "Value"):
        return f"of the kind {kind}"
    if types.is_dictionary(type_):
        type_ = type_.value_type
    if is_text(type_) or types.is_null(type_) or _is_bytes(type_) or _is_struct(type_):
        return ""
    return str(type_)


def is_text(type_: Any) -> bool:
    """Whether a column of this Arrow type holds text."""
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    return types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)


def class_names(schema: Any, name: str) -> Sequence[str] | None:
    """Returns the names of a column's classes, which the rows have by their numbers."""
    from pyarrow import types

    feature = _features(schema).get(name)
    if _kind(feature) != "ClassLabel" or not types.is_integer(schema.field(name).type):
        return None
    names = feature["names"] if feature and "names" in feature else None
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        return None
    return names


def class_name(number: int | None, names: Sequence[str]) -> str | None:
    """Returns the name of a class; None for -1, by which data sets hide what is to be predicted."""
    if number is None or number == -1:
        return None
    return names[number] if 0 <= number < len(names) else str(number)


def fitted(where: Where, schema: Any) -> Where:
    """Returns conditions with their numbers and moments as the columns of a schema have them.

    Raises:
        ValueError: a column is of a type that can't be compared, or with other values.
    """
    import dataclasses

    import numpy as np
    from pyarrow import types

    conditions = []
    for condition in where.conditions:
        type_ = schema.field(condition.name).type
        if types.is_dictionary(type_):
            type_ = type_.value_type
        if types.is_nested(type_) or types.is_duration(type_) or types.is_interval(type_):
            raise ValueError(
                f"where {condition}: the column {condition.name!r} is {type_}; expected one of "
                "numbers, text, times, or true and false"
            )
        is_class = class_names(schema, condition.name) is not None
        if condition.operator == "~" and not (is_text(type_) or _is_bytes(type_) or is_class):
            raise ValueError(
                f"where {condition}: ~ is for columns of text; {condition.name!r} is {type_}"
            )
        is_number = types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_)
        if is_number and not is_class:
            if odd := [value.text for value in condition.values if value.number is None]:
                raise ValueError(
                    f"where {condition}: the column {condition.name!r} is {type_}, and {odd[0]!r} "
                    "is no number"
                )
        if types.is_boolean(type_):
            _check_truth(condition)
        if types.is_timestamp(type_) or types.is_date(type_):
            values = tuple(_of_time(condition, value.text, type_) for value in condition.values)
            condition = dataclasses.replace(condition, values=values)
        if types.is_float32(type_) or types.is_float16(type_):
            kind = np.float32 if types.is_float32(type_) else np.float16
            values = tuple(
                dataclasses.replace(value, number=rounded(kind, value.number))
                for value in condition.values
            )
            condition = dataclasses.replace(condition, values=values)
        conditions.append(condition)
    return Where(tuple(conditions))


def _check_truth(condition: Condition) -> None:
    odd = [value.text for value in condition.values if value.text.lower() not in TRUTH]
    if odd or condition.operator not in ("=", "!=", "in"):
        raise ValueError(
            f"where {condition}: the column {condition.name!r} is true or false; expected "
            f"{condition.name}=true or {condition.name}=false"
        )


def rounded(kind: Any, number: Any) -> float:
    """Returns a number as a type of floats has it; infinite where it is too large for that."""
    import numpy as np

    with np.errstate(over="ignore"), contextlib.suppress(OverflowError):
        return float(kind(number))
    return math.inf if number > 0 else -math.inf


def _of_time(condition: Condition, text: str, type_: Any) -> Value:
    moment = moment_of(text)
    if moment is None:
        raise ValueError(
            f"where {condition}: the column {condition.name!r} has times, such as 2020-01-31 or "
            f"2020-01-31T12:30. Got {text!r}"
        )
    return Value(as_written(moment, type_))


def _features(schema: Any) -> Mapping[str, Any]:
    found = None
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    return found if isinstance(found, dict) else {}


def _kind(feature: Any) -> str | None:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return kind if isinstance(kind, str) else None


def _is_bytes(type_: Any) -> bool:
    from pyarrow import types

    return (
        types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_binary_view(type_)
        or types.is_fixed_size_binary(type_)
    )


def _is_struct(type_: Any) -> bool:
    """Whether a column has the form of Hugging Face's pictures: bytes, a path or both."""
    from pyarrow import types

    if not types.is_struct(type_):
        return False
    names = {type_.field(i).name for i in range(type_.num_fields)}
    return bool(names) and names <= {"bytes", "path"}
