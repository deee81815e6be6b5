"""The labels of a row: none, one, or several that are all right."""

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from clip_jax.evaluate.classes import name_classes

# The right labels of a row.
Labels = tuple[str, ...]
# The longest text that is read as a list.
LONGEST = 10_000


def as_labels(value: Any) -> Labels:
    """Returns the labels that a column's value holds; none if it is empty.

    Text that is written as a list, such as "['cat', 'dog']", holds several.

    Raises:
        ValueError: a label is neither text nor a number.
    """
    if isinstance(value, str):
        value = _as_list(value.strip())
    values = value if isinstance(value, list | tuple) else [value]
    labels = [_as_label(each) for each in values]
    return tuple(dict.fromkeys(label for label in labels if label is not None))


def only_labels(keys: Sequence[str], labels: Sequence[Labels]) -> list[str]:
    """Returns the one label of each row.

    Raises:
        ValueError: a row has several, which a linear probe can't be fitted to.
    """
    for key, row in zip(keys, labels, strict=True):
        if len(row) > 1:
            raise ValueError(
                f"{key} has several labels, {', '.join(row)}: a linear probe is of one class a "
                f"row. Give a column with one label each"
            )
    return [row[0] for row in labels]


def number_labels(
    labels: Sequence[Labels], lines: Sequence[str] | None
) -> tuple[list[str], list[Int[np.ndarray, " _"]]]:
    """Returns the names of the classes, and those of each row as indices; as `name_classes`."""
    names, numbers = name_classes([label for row in labels for label in row], lines)
    ends = np.cumsum([len(row) for row in labels])
    return names, np.split(numbers, ends[:-1])


def best_of(
    logits: Float[np.ndarray, "b k"], right: Sequence[Int[np.ndarray, " _"]]
) -> Int[np.ndarray, " b"]:
    """Returns which of each row's right classes has the highest logit."""
    pairs = zip(logits, right, strict=True)
    return np.array([row[row_logits[row].argmax()] for row_logits, row in pairs])


def _as_list(text: str) -> Any:
    if not (text.startswith("[") and text.endswith("]")) or len(text) > LONGEST:
        return text
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list) else text


def _as_label(value: Any) -> str | None:
    """Returns a value as the name of a class; None if it is empty.

    Raises:
        ValueError: it is neither text nor a number.
    """
    if value is None or value != value:  # NaN, as pandas writes what is missing
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"a label must be text or a number. Got a {type(value).__name__}")
    return str(value).strip() or None
