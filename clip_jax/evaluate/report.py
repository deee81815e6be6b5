"""A page about a classification: figures, classes, confusion, and the most confident mistakes."""

import base64
import contextlib
import csv
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clip_jax.evaluate.c_sweep import Sweep
from clip_jax.evaluate.results import ClassificationResult, ProbeResult
from clip_jax.evaluate.scores import Scores
from clip_jax.search import contact_sheet
from clip_jax.storage import Disk

PAGE, PER_CLASS, CONFUSION, SWEEP = "report.html", "per_class.csv", "confusion.png", "sweep.png"
# Mistakes on the page.
SHOWN = 100
# Up to so many classes, the confusion matrix shows their names.
NAMED = 50
# Up to so many, each class has a row of its own in the matrix; the picture has no more pixels.
DRAWN = 1_500
# Spreadsheets run text that begins with one of these as a formula.
_FORMULAS = (*"=+-@", *"\uff1d\uff0b\uff0d\uff20", "\t", "\r", "\n")

COLUMNS = "class", "rows", "right", "accuracy", "most often taken for"
_STYLE = """h2 { font-size: 1.1rem; font-weight: 600; margin-top: 2rem; }
main > img { display: block; max-width: 100%; }
section { max-height: 26rem; overflow: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8884; padding: .25rem 1.2rem .25rem 0; text-align: left; }
th { background: Canvas; font-weight: 600; position: sticky; top: 0; }
.number { text-align: right; }
"""


def prepare(folder: str | os.PathLike[str]) -> None:
    """Makes the folder of a report, before hours of work that would have nowhere to go.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be made.
    """
    _figure()
    Path(folder).mkdir(parents=True, exist_ok=True)


def write_report(folder: str | os.PathLike[str], title: str, result: ClassificationResult) -> None:
    """Writes a page about a classification, and its tables and pictures as files beside it.

    `report.html` needs no other file. Beside it are `per_class.csv` and `confusion.png`, and
    `sweep.png` if the result has a search for C. The files of an earlier report are replaced.

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
        result: what `zeroshot` or `probe` returns.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be written.
    """
    prepare(folder)
    scores, class_names = result.scores, result.class_names
    rows = _per_class(scores, class_names)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows(tuple(map(_harmless, row)) for row in rows)
    confusion = _draw_confusion(scores, class_names)
    files = {PER_CLASS: table.getvalue().encode("utf-8", "backslashreplace"), CONFUSION: confusion}
    mistakes = _mistakes(result)
    parts = [f"<p>{_summary(scores, class_names)}</p>"]
    if isinstance(result, ProbeResult) and result.sweep:
        files[SWEEP] = _draw_sweep(result.sweep)
        parts += ["<h2>Strength of the regularisation</h2>", _embedded(SWEEP, files[SWEEP])]
    wrong = int(scores.count - scores.confusion.diagonal().sum())
    last = f"Mistakes: the {len(mistakes)} most confident of {wrong:,}" if wrong else "No mistakes"
    parts += [
        "<h2>Classes</h2>",
        f"<section>{_table(rows)}</section>",
        "<h2>Confusion</h2>",
        _embedded(CONFUSION, confusion),
        f"<h2>{last}</h2>",
    ]
    before = "\n".join(["<main>", *parts, "</main>\n"])
    page = contact_sheet(mistakes, title, style=_STYLE, before=before)
    # Written only now that all is made: a failure leaves an earlier report as it was.
    files[PAGE] = page.encode("utf-8", "backslashreplace")
    for name, data in files.items():
        Disk().write(os.path.join(folder, name), data)


def _draw_sweep(sweep: Sweep) -> bytes:
    figure = _figure()(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    strengths = [trial.C for trial in sweep.trials]
    panel.plot(strengths, [trial.accuracy for trial in sweep.trials], "o-", color="#30638e")
    panel.axvline(sweep.best.C, color="#d1495b", linestyle="--", label=f"C = {sweep.best.C:.3g}")
    panel.set(xscale="log", xlabel="C, inverse strength", ylabel="accuracy on validation rows")
    panel.legend()
    panel.grid(alpha=0.3)
    return _png(figure)


def _per_class(scores: Scores, class_names: Sequence[str]) -> list[tuple[object, ...]]:
    """Returns a row for each class, with the cells of COLUMNS."""
    confusion, table = scores.confusion, []
    rows, right = confusion.sum(axis=1), confusion.diagonal()
    for i, name in enumerate(class_names):
        cells = slice(*confusion.indptr[i : i + 2])
        predicted, counts = confusion.indices[cells], confusion.data[cells]
        predicted, counts = predicted[predicted != i], counts[predicted != i]
        # Of several equally frequent classes, the first.
        most = predicted[counts == counts.max()].min() if len(predicted) else None
        other = "" if most is None else class_names[int(most)]
        share = f"{right[i] / rows[i]:.4f}" if rows[i] else ""
        table.append((name, rows[i], right[i], share, other))
    return table


def _harmless(cell: object) -> object:
    """Returns a cell that no spreadsheet runs as a formula."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULAS):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell  # a number, such as -1
    return f"'{cell}"


def _summary(scores: Scores, class_names: Sequence[str]) -> str:
    low, high = scores.interval
    return (
        f"{scores.count:,} images of {len(class_names):,} classes. Top-1 {scores.top1:.2%} (95% "
        f"interval {low:.2%} to {high:.2%}), top-5 {scores.top5:.2%}, mean per class "
        f"{scores.mean_per_class:.2%}."
    )


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    """Returns rows as HTML. All columns but the first and the last are numbers."""

    def line(tag: str, cells: Sequence[object]) -> str:
        numbers = range(1, len(cells) - 1)
        marked = (
            f"<{tag}{' class=number' if i in numbers else ''}>{html.escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    return "\n".join(
        ["<table>", line("th", COLUMNS), *(line("td", cells) for cells in rows), "</table>"]
    )


def _embedded(name: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{name.partition(".")[0]}">'


def _draw_confusion(scores: Scores, class_names: Sequence[str]) -> bytes:
    count = len(class_names)
    shares = _confusion_shares(scores.confusion)
    side = float(np.clip(3 + 0.3 * count, 5, 16))
    figure = _figure()(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=extent)
    what = "class's" if len(shares) == count else f"{-(-count // len(shares))} classes'"
    figure.colorbar(image, ax=panel, label=f"share of the {what} rows", shrink=0.8)
    panel.set(xlabel="predicted class", ylabel="true class")
    if count <= NAMED:
        # matplotlib would read text between dollar signs as a formula.
        names = [name.replace("$", r"\$") for name in class_names]
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_yticks(range(len(names)), names)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def _confusion_shares(confusion: Any) -> Float[np.ndarray, "c c"]:
    """Returns the confusion matrix in shares of each row; many classes are put together."""
    found = confusion.tocoo()
    count = found.shape[0]
    cells = min(count, DRAWN)
    pixels = np.zeros((cells, cells))
    places = tuple(numbers * cells // count for numbers in (found.row, found.col))
    np.add.at(pixels, places, found.data)
    return pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)


def _mistakes(result: ClassificationResult) -> list[dict[str, Any]]:
    """Returns the most confident mistakes, the most confident first, as for a contact sheet."""
    scores, names = result.scores, result.class_names
    wrong = np.flatnonzero(scores.predicted != result.targets)
    wrong = wrong[np.argsort(-scores.confidence[wrong], kind="stable")][:SHOWN].tolist()
    return [
        {
            "key": result.keys[row],
            "score": float(scores.confidence[row]),
            "path": result.paths[row],
            "caption": ", taken for ".join(
                names[int(classes[row])] for classes in (result.targets, scores.predicted)
            ),
        }
        for row in wrong
    ]


def _figure() -> type:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the report draws with matplotlib: pip install 'clip-jax-flax[evaluate]'"
        ) from None
    return Figure
