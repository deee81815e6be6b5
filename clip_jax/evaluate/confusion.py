"""The confusion matrix of a report: as a picture, and as data for the page's script."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.pages import shortened

# Up to so many classes, the picture shows their names.
NAMED = 50
# So many characters of each.
NAMED_BY = 32
# Up to so many, each class has a row of its own in the picture, which has no more pixels.
DRAWN = 1_500
# Cells on the page, of classes and what they are taken for.
CELLS = 50_000


def draw_confusion(confusion: Any, class_names: Sequence[str]) -> bytes:
    """Returns the confusion matrix as a PNG."""
    count = len(class_names)
    shares = confusion_shares(confusion)
    side = float(np.clip(3 + 0.3 * count, 5, 16))
    names: list[str] = []
    if count <= NAMED:
        names = [shortened(" ".join(name.split()), NAMED_BY) for name in class_names]
        side += 0.14 * max(map(len, names))  # beside the matrix; a letter is an em wide at most
    drawing = figure()(figsize=(side + 1, side), layout="constrained")
    panel = drawing.subplots()
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=extent)
    what = "class's" if len(shares) == count else f"{-(-count // len(shares))} classes'"
    drawing.colorbar(image, ax=panel, label=f"share of the {what} rows", shrink=0.8)
    panel.set(xlabel="predicted class", ylabel="true class")
    if names:
        # matplotlib would read text between dollar signs as a formula.
        names = [name.replace("$", r"\$") for name in names]
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_yticks(range(len(names)), names)
    return png(drawing)


def confusion_shares(confusion: Any) -> Float[np.ndarray, "c c"]:
    """Returns the confusion matrix in shares of each row; many classes are put together."""
    found = confusion.tocoo()
    count = found.shape[0]
    cells = min(count, DRAWN)
    pixels = np.zeros((cells, cells))
    places = tuple(numbers * cells // count for numbers in (found.row, found.col))
    np.add.at(pixels, places, found.data)
    return pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)


def confusion_data(confusion: Any, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the names, the rows of each class, and the largest cells with their counts."""
    found = confusion.tocoo()
    largest = np.argsort(-found.data, kind="stable")[:CELLS]
    cells = np.stack([found.row, found.col, found.data], axis=1)[largest]
    return {
        "names": [shortened(name) for name in class_names],
        "totals": confusion.sum(axis=1).tolist(),
        "cells": cells.tolist(),
    }


def top_confusions(confusion: Any, most: int) -> list[tuple[int, int, int]]:
    """Returns the most frequent confusions: true class, predicted class, count."""
    found = confusion.tocoo()
    is_wrong = found.row != found.col
    row, column, count = (each[is_wrong] for each in (found.row, found.col, found.data))
    order = np.argsort(-count, kind="stable")[:most]
    return [(int(row[i]), int(column[i]), int(count[i])) for i in order]


def png(drawing: Any, **options: Any) -> bytes:
    """Returns a figure of matplotlib's as a PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Its font lacks letters of many scripts. The page has the names in any.
        warnings.filterwarnings("ignore", "Glyph")
        drawing.savefig(file, dpi=110, format="png", **options)
    return file.getvalue()


def figure() -> type:
    """Returns matplotlib's class of figures.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the report draws with matplotlib: pip install 'clip-jax-flax[evaluate]'"
        ) from None
    return Figure
