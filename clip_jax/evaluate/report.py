"""A page that shows a classification: figures, classes, confusion, and the worst mistakes."""

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
from jaxtyping import Float, Int

from clip_jax.evaluate.c_sweep import Sweep
from clip_jax.evaluate.scores import Scores
from clip_jax.search import contact_sheet
from clip_jax.storage import Disk

PAGE, PER_CLASS, CONFUSION, SWEEP = "report.html", "per_class.csv", "confusion.png", "sweep.png"
# Mistakes on the sheet.
SHOWN = 100
# Classes up to which the matrix has their names, and up to which each has a row of its own: more
# than the picture has pixels.
NAMED, DRAWN = 50, 1_500
# What text begins with that a spreadsheet takes for a formula, and runs.
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
    """Makes the folder of a report.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be made.
    """
    _figure()
    Path(folder).mkdir(parents=True, exist_ok=True)


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    scores: Scores,
    class_names: Sequence[str],
    targets: Int[np.ndarray, " n"],
    keys: Sequence[str],
    paths: Sequence[str | None],
    sweep: Sweep | None = None,
) -> None:
    """Writes the page, which needs no other file, and what is in it beside it.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be written.
    """
    rows = _per_class(scores, class_names)
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows(tuple(map(_harmless, row)) for row in rows)
    confusion = _draw_confusion(scores, class_names)
    files = {PER_CLASS: table.getvalue().encode("utf-8", "backslashreplace"), CONFUSION: confusion}
    mistakes = _mistakes(scores, class_names, targets, keys, paths)
    parts = [f"<p>{_summary(scores, class_names)}</p>"]
    if sweep:
        files[SWEEP] = _draw_sweep(sweep)
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
    # Once all is there: an earlier report's files are replaced by whole ones or not at all.
    files[PAGE] = page.encode("utf-8", "backslashreplace")
    for name, data in files.items():
        Disk().write(os.path.join(folder, name), data)


def _draw_sweep(sweep: Sweep) -> bytes:
    figure = _figure()(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    strengths = [trial.C for trial in sweep.trials]
    panel.plot(strengths, [trial.accuracy for trial in sweep.trials], "o-", color="#30638e")
    panel.axvline(sweep.best.C, color="#d1495b", linestyle="--", label=f"C = {sweep.best.C:.3g}")
    panel.set(xscale="log", xlabel="C, the inverse strength", ylabel="accuracy on validation rows")
    panel.legend()
    panel.grid(alpha=0.3)
    return _png(figure)


def _per_class(scores: Scores, class_names: Sequence[str]) -> list[tuple[object, ...]]:
    """A row for each class, as COLUMNS has it."""
    confusion, table = scores.confusion, []
    rows, right = confusion.sum(axis=1), confusion.diagonal()
    for i, name in enumerate(class_names):
        others = slice(*confusion.indptr[i : i + 2])
        taken, counts = confusion.indices[others], confusion.data[others]
        taken, counts = taken[taken != i], counts[taken != i]
        # Of those as often, the class that comes first.
        other = class_names[int(taken[counts == counts.max()].min())] if len(taken) else ""
        share = f"{right[i] / rows[i]:.4f}" if rows[i] else ""
        table.append((name, rows[i], right[i], share, other))
    return table


def _harmless(cell: object) -> object:
    """The cell, not as a formula: spreadsheets run text that begins like one."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULAS):
        return cell
    with contextlib.suppress(ValueError):
        float(cell)
        return cell  # a number, such as -1, is none
    return f"'{cell}"


def _summary(scores: Scores, class_names: Sequence[str]) -> str:
    low, high = scores.interval
    return (
        f"{scores.count:,} images of {len(class_names):,} classes. Top-1 {scores.top1:.2%} (95% "
        f"interval {low:.2%} to {high:.2%}), top-5 {scores.top5:.2%}, mean per class "
        f"{scores.mean_per_class:.2%}."
    )


def _table(rows: Sequence[tuple[object, ...]]) -> str:
    """HTML; all but the first and the last column are numbers."""

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
    shares = _drawn(scores.confusion)
    side = float(np.clip(3 + 0.3 * count, 5, 16))
    figure = _figure()(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    extent = (-0.5, count - 0.5, count - 0.5, -0.5)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=extent)
    what = "class's" if len(shares) == count else f"{-(-count // len(shares))} classes'"
    figure.colorbar(image, ax=panel, label=f"share of the {what} rows", shrink=0.8)
    panel.set(xlabel="taken for", ylabel="is")
    if count <= NAMED:
        # Names are text: matplotlib would read a formula between dollar signs.
        names = [name.replace("$", r"\$") for name in class_names]
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_yticks(range(len(names)), names)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    return file.getvalue()


def _drawn(confusion: Any) -> Float[np.ndarray, "c c"]:
    """Shares of each class's rows; of neighbouring classes together, where these are many."""
    found = confusion.tocoo()
    count = found.shape[0]
    cells = min(count, DRAWN)
    pixels = np.zeros((cells, cells))
    places = tuple(numbers * cells // count for numbers in (found.row, found.col))
    np.add.at(pixels, places, found.data)
    return pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)


def _mistakes(
    scores: Scores,
    class_names: Sequence[str],
    targets: Int[np.ndarray, " n"],
    keys: Sequence[str],
    paths: Sequence[str | None],
) -> list[dict[str, Any]]:
    """Those that the classifier is surest of, first the surest, as a contact sheet takes them."""
    wrong = np.flatnonzero(scores.taken != targets)
    wrong = wrong[np.argsort(-scores.confidence[wrong], kind="stable")][:SHOWN]
    own_names, other_names = (
        [class_names[i] for i in numbers[wrong]] for numbers in (targets, scores.taken)
    )
    return [
        {
            "key": keys[row],
            "score": float(scores.confidence[row]),
            "path": paths[row],
            "caption": f"{own}, taken for {other}",
        }
        for row, own, other in zip(wrong, own_names, other_names, strict=True)
    ]


def _figure() -> type:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the report draws with matplotlib: pip install 'clip-jax-flax[evaluate]'"
        ) from None
    return Figure
