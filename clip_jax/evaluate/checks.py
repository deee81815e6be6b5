"""Checks of the linear probe's features and labels, with scikit-learn's messages."""

import numbers
import sys
import warnings
from typing import Any

import numpy as np

from clip_jax.messages import some


def check_features(features: Any, dtype: str, expected: int | None = None) -> np.ndarray:
    """Returns features as an array of that dtype.

    Args:
        features: (n, d) numbers.
        dtype: "float32" or "float64".
        expected: how many columns there must be; None for any number.

    Raises:
        ValueError: the shape is wrong, or a value is not finite; names the rows.
        TypeError: the features are sparse or not numbers.
    """
    if hasattr(features, "toarray"):
        raise TypeError("sparse features are not supported: give a dense array, X.toarray()")
    features = np.asarray(features)
    if features.dtype.kind == "c":
        raise ValueError("Complex data not supported: features must be real numbers.")
    if features.ndim != 2:
        raise ValueError(
            f"features must have the shape (rows, columns). Got {features.shape}. "
            "Reshape your data."
        )
    rows, columns = features.shape
    if not columns:
        raise ValueError(f"0 feature(s) (shape={features.shape}) while a minimum of 1 is required.")
    if not rows:
        raise ValueError(f"0 sample(s) (shape={features.shape}) while a minimum of 1 is required.")
    if expected is not None and columns != expected:
        raise ValueError(
            f"X has {columns} features, but LinearProbe is expecting {expected} features as input."
        )
    with np.errstate(over="ignore"):  # infinity is reported below
        features = features.astype(dtype, copy=False)
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise ValueError(
            f"features must be finite: rows {some(bad)} hold NaN or infinity, or numbers too large "
            f"for {dtype}. Leave those rows out."
        )
    return features


def check_labels(labels: Any, num_rows: int) -> np.ndarray:
    """Returns labels as an array (n,).

    Args:
        labels: (n,) strings or whole numbers.
        num_rows: the number of rows of the features.

    Raises:
        ValueError: the shape is wrong, a label is missing, or one can't be a class.

    Warns:
        UserWarning: the labels have the shape (n, 1).
    """
    if labels is None:
        raise ValueError("requires y to be passed, but the target y is None: labels are missing.")
    # NumPy would turn None and NaN in a list of strings into strings.
    values = np.asarray(labels, None if hasattr(labels, "dtype") else object)
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        # scikit-learn's own warning if it is loaded, since its tools expect that.
        exceptions: Any = sys.modules.get("sklearn.exceptions")
        kind = exceptions.DataConversionWarning if exceptions else UserWarning
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: give y.ravel().",
            kind,
            stacklevel=3,
        )
        labels = labels.ravel()
    if labels.ndim != 1 or len(labels) != num_rows:
        raise ValueError(
            f"labels must have the shape ({num_rows},), one for each row of the features. "
            f"Got {labels.shape}."
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("Input y contains NaN or infinity: every row needs a label.")
    if labels.dtype.kind == "c" or (labels.dtype.kind == "f" and (labels % 1 != 0).any()):
        raise ValueError("Unknown label type: continuous. Labels must be strings or whole numbers.")
    if values.dtype.kind == "O":
        _check_values(values.ravel())
    return labels


def number_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted classes of checked labels, and each row's class as an index into them.

    Raises:
        ValueError: there is only one class.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"labels must be of at least two classes. Got one class: {classes[:1].tolist()[0]!r}."
        )
    return classes, targets


def check_kind(labels: np.ndarray, classes: np.ndarray) -> None:
    """Checks that labels are of the same kind as the classes: both text, or both numbers.

    Raises:
        ValueError: they are not; names both kinds.
    """
    (given,), (expected,) = _kinds(labels), _kinds(classes)
    if given != expected:
        raise ValueError(
            f"labels must be {expected}, as those that the probe was fitted to. "
            f"Got {given}, such as {labels[:1].tolist()[0]!r}."
        )


def _check_values(labels: np.ndarray) -> None:
    """Checks labels that are Python objects, which may be anything."""
    if missing := [row for row, label in enumerate(labels) if _is_missing(label)]:
        raise ValueError(
            "Input y contains NaN or None: every row needs a label, and rows "
            f"{some(missing)} have none."
        )
    if len(kinds := _kinds(labels)) > 1:
        raise ValueError(f"labels must be of one kind. Got {' and '.join(sorted(kinds))}.")


def _is_missing(label: Any) -> bool:
    if label is None:
        return True
    try:
        return bool(label != label)  # NaN, as float and in NumPy, pandas' NaT
    except TypeError:  # pandas' NA, whose comparison is NA again
        return True


def _kinds(labels: np.ndarray) -> set[str]:
    types = set(map(type, labels)) if labels.dtype.kind == "O" else {labels.dtype.type}
    return {_kind(each) for each in types}


def _kind(of: type) -> str:
    if issubclass(of, str):
        return "text"
    return "numbers" if issubclass(of, numbers.Number | np.bool_) else of.__name__
