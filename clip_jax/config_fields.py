"""What all configurations have in common: checks of their fields, and the way to JSON and back."""

import dataclasses
import math
from typing import Any, get_args

Color = tuple[float, float, float]

# The largest number in a configuration; above it, arithmetic with sizes fails in many ways.
MAX_NUMBER = 2**31 - 1


def check_fields(config: Any) -> None:
    """Raises ValueError if a field of a configuration has a value that its type doesn't allow."""
    for field in dataclasses.fields(config):
        _check_field(field.name, field.type, getattr(config, field.name))


def _check_field(name: str, kind: Any, value: Any) -> None:
    if get_args(kind)[-1:] == (type(None),):
        if value is None:
            return
        kind = get_args(kind)[0]
    values = value if isinstance(value, tuple) else (value,)
    if kind in (int, tuple[int, int, int, int]):
        least = 0 if name == "eos_id" else 1
        if any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in values):
            wanted = "positive and whole" if least else "whole and not negative"
            raise ValueError(f"{name} must be {wanted}. Got {value!r}.")
        if max(values) > MAX_NUMBER:
            raise ValueError(f"{name} must be at most {MAX_NUMBER:,}. Got a larger number.")
    elif kind in (float, Color):
        count = 1 if kind is float else 3
        if len(values) != count or not all(_is_finite(v) for v in values):
            wanted = "a finite number" if count == 1 else "three finite numbers"
            raise ValueError(f"{name} must be {wanted}. Got {value!r}.")
        if name in ("norm_epsilon", "std") and min(values) <= 0:
            raise ValueError(f"{name} must be positive. Got {value!r}.")
    elif kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false. Got {value!r}.")
    elif kind is str and not isinstance(value, str):
        raise ValueError(f"{name} must be text. Got {value!r}.")
    elif (choices := get_args(kind)) and all(isinstance(c, str) for c in choices):
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}. Got {value!r}.")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= MAX_NUMBER and not math.isnan(value)


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError if the heads don't divide the width."""
    if width % num_heads:
        raise ValueError(f"num_heads must divide the width. Got {num_heads} and {width}.")


class ShortRepr:
    """Shows a configuration by what makes it, without what is at its default."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        told = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in sorted(fields, key=lambda field: bool(field.kw_only))
            if getattr(self, field.name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(told)})"


def document_of(config: Any) -> dict[str, Any]:
    """Returns a configuration's fields by name, in order, without optional ones at defaults."""
    document: dict[str, Any] = {}
    for field in sorted(dataclasses.fields(config), key=lambda field: bool(field.kw_only)):
        value = getattr(config, field.name)
        if not field.kw_only or value != field.default:
            document[field.name] = document_of(value) if dataclasses.is_dataclass(value) else value
    return document


def fields_of(document: Any, name: str) -> dict[str, Any]:
    """Returns the fields of an object within a document; ValueError if there is none."""
    fields = document.get(name) if isinstance(document, dict) else None
    if not isinstance(fields, dict):
        raise ValueError(f"the configuration must have an object {name!r}.")
    return dict(fields)


def build(cls: type, fields: dict[str, Any]) -> Any:
    """Builds an instance of a dataclass.

    Raises:
        ValueError: fields are missing or unknown; the message lists them.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    missing = dataclasses.MISSING
    required = {
        name
        for name, field in known.items()
        if field.default is missing and field.default_factory is missing
    }
    problems = [f"- {name}: missing" for name in sorted(required - fields.keys())]
    problems += [f"+ {name}: unknown" for name in sorted(fields.keys() - known.keys())]
    if problems:
        raise ValueError(f"{cls.__name__} does not fit: " + "; ".join(problems))
    return cls(**fields)
