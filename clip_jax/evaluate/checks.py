"""What features and labels must be, for the linear probe; messages as scikit-learn words them."""

import sys
import warnings
from typing import Any

import numpy as np


def check_features(features: Any, dtype: str, expected: int | None = None) -> np.ndarray:
    """Features as an array of that dtype.

    Args:
        features: (n, d) numbers.
        dtype: "float32" or "float64".
        expected: how many columns there must be.

    Raises:
        ValueError: the shape is another, or a value is not finite; names the rows.
        TypeError: they are sparse, or no numbers.
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
    with np.errstate(over="ignore"):  # seen as infinite just below
        features = features.astype(dtype, copy=False)
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        shown = ", ".join(map(str, bad[:10])) + (" and more" if len(bad) > 10 else "")
        raise ValueError(
            f"features must be finite: rows {shown} hold NaN or infinity, or numbers too large "
            f"for {dtype}. Leave those rows out."
        )
    return features


def check_labels(labels: Any, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and the number of each row's.

    Args:
        labels: (n,) strings or whole numbers.
        num_rows: of the features.

    Raises:
        ValueError: the shape is another, the labels are no classes, or there is only one.
    """
    if labels is None:
        raise ValueError("requires y to be passed, but the target y is None: labels are missing.")
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        # Its own warning where scikit-learn is in use, so that its tools know it.
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
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"labels must be of at least two classes. Got one class: {classes[0].item()!r}."
        )
    return classes, targets
