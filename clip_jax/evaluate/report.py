"""The report of an evaluation: a page that needs no other file, with its figures beside it."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_jax.evaluate.classification_page import COLUMNS, classification_page, draw_sweep
from clip_jax.evaluate.confusion import draw_confusion, figure
from clip_jax.evaluate.documents import classification_document, retrieval_document
from clip_jax.evaluate.results import ClassificationResult, ProbeResult, RetrievalResult
from clip_jax.evaluate.retrieval_page import retrieval_page
from clip_jax.evaluate.scores import Scores
from clip_jax.storage import Disk

PAGE, FIGURES = "report.html", "report.json"
PER_CLASS, CONFUSION, SWEEP = "per_class.csv", "confusion.png", "sweep.png"
# Spreadsheets run text that begins with one of these as a formula.
_FORMULAS = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")


def prepare(folder: str | os.PathLike[str], *, draws: bool = True) -> None:
    """Checks that a report can be written, before hours of work that would have nowhere to go.

    A folder that isn't there is made, and removed again: work that is stopped leaves none behind.

    Args:
        folder: where the files will go.
        draws: whether the report has drawings, as those of classifications do.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be made.
    """
    if draws:
        figure()
    path = Path(folder)
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        each.rmdir()


def write_report(
    folder: str | os.PathLike[str], title: str, result: ClassificationResult | RetrievalResult
) -> None:
    """Writes a page about an evaluation, and its tables and pictures as files beside it.

    `report.html` needs no other file, and asks no server for anything. Beside it is `report.json`
    with the figures; of a classification also `per_class.csv` and `confusion.png`, and `sweep.png`
    if the result has a search for C. The files of an earlier report are replaced.

    A page has at most 32 MB of pictures, and says what it leaves out.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from clip_jax.evaluate import ClassificationResult, LeftOut
        >>> from clip_jax.evaluate.scores import score
        >>> targets = np.array([0, 1])
        >>> scores = score(np.eye(2), targets)
        >>> result = ClassificationResult(
        ...     scores, ["dog", "cat"], targets, ["a.png", "b.png"], [None, None], LeftOut()
        ... )
        >>> write_report(tempfile.mkdtemp(), "Dogs and cats", result)

    Args:
        folder: where the files go; made if it isn't there.
        title: the heading of the page.
        result: what `zeroshot`, `probe` or `retrieval` returns.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be written.
    """
    is_retrieval = isinstance(result, RetrievalResult)
    prepare(folder, draws=not is_retrieval)
    files = _of_retrieval(title, result) if is_retrieval else _of_classification(title, result)
    # Written only now that all is made: a failure leaves an earlier report as it was.
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        Disk().write(os.path.join(folder, name), data)


def _of_retrieval(title: str, result: RetrievalResult) -> dict[str, bytes]:
    return {
        FIGURES: _json(retrieval_document(result)),
        PAGE: _utf8(retrieval_page(title, result)),
    }


def _of_classification(title: str, result: ClassificationResult) -> dict[str, bytes]:
    scores, class_names = result.scores, result.class_names
    rows = _per_class(scores, class_names)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for row in rows:
        other = "" if row[-1] is None else class_names[row[-1]]
        writer.writerow(tuple(map(_harmless, (*row[:-1], other))))
    files = {
        PER_CLASS: _utf8(table.getvalue()),
        CONFUSION: draw_confusion(scores.confusion, class_names),
        FIGURES: _json(classification_document(result)),
    }
    drawn = None
    if isinstance(result, ProbeResult) and result.sweep:
        files[SWEEP] = draw_sweep(result.sweep)
        # On the page it lies on the page's own ground, light or dark.
        drawn = draw_sweep(result.sweep, transparent=True)
    files[PAGE] = _utf8(classification_page(title, result, rows, drawn))
    return files


def _per_class(scores: Scores, class_names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Returns a row for each class, with the cells of COLUMNS; the last as the class's number."""
    confusion, table = scores.confusion, []
    rows, right = confusion.sum(axis=1), confusion.diagonal()
    for i, name in enumerate(class_names):
        cells = slice(*confusion.indptr[i : i + 2])
        predicted, counts = confusion.indices[cells], confusion.data[cells]
        predicted, counts = predicted[predicted != i], counts[predicted != i]
        # Of several equally frequent classes, the first.
        most = int(predicted[counts == counts.max()].min()) if len(predicted) else None
        share = f"{right[i] / rows[i]:.4f}" if rows[i] else ""
        table.append((name, rows[i], right[i], share, most))
    return table


def _harmless(cell: object) -> object:
    """Returns a cell that no spreadsheet runs as a formula."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULAS):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell  # a number, such as -1
    return f"'{cell}"


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"
