"""The page about a classification: figures, classes, confusion, and the mistakes."""

import base64
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Int

from clip_jax.evaluate.c_sweep import Sweep
from clip_jax.evaluate.confusion import confusion_data, figure, png, top_confusions
from clip_jax.evaluate.origin import facts_of, left_out_note
from clip_jax.evaluate.results import ClassificationResult, ProbeResult, ZeroShotResult
from clip_jax.pages import data, figures, page, shortened, table, text
from clip_jax.thumbnails import Thumbnails, address_of

# The most confident mistakes with their pictures; the most frequent confusions, and how many
# mistakes of each have their picture at least; mistakes that are listed by name.
SHOWN, CONFUSIONS, OF_EACH, LISTED = 100, 30, 3, 5_000
# Classes in the table.
CLASSES = 2_000

COLUMNS = "class", "rows", "right", "accuracy", "most often taken for"

_MATRIX = """<div id="matrix" hidden>
<p class="note" id="hint"></p>
<div class="tools"><button id="closer" aria-label="closer">+</button>
<button id="farther" aria-label="farther">&minus;</button><button id="whole">whole</button>
<input id="find" type="search" placeholder="find a class" aria-label="find a class"></div>
<canvas id="confusion" tabindex="0" aria-label="confusion matrix"></canvas>
<div id="tip" hidden></div>
</div>
<noscript><p class="note">The matrix needs JavaScript; confusion.png does not.</p></noscript>"""


def classification_page(
    title: str, result: ClassificationResult, rows: Sequence[tuple[Any, ...]], sweep: bytes | None
) -> str:
    """Returns the page.

    Args:
        title: its heading.
        result: what `zeroshot` or `probe` returns.
        rows: one for each class, with the cells of COLUMNS; what it is most often taken for as the
            number of a class, or None.
        sweep: the drawing of the search for C, if there was one.
    """
    scores, names = result.scores, result.class_names
    low, high = scores.interval
    body = [
        figures(
            {
                f"top-1, 95% interval {low:.2%} to {high:.2%}": f"{scores.top1:.2%}",
                "top-5": f"{scores.top5:.2%}",
                "mean per class": f"{scores.mean_per_class:.2%}",
                "images": f"{scores.count:,}",
                "classes": f"{len(names):,}",
            }
        ),
        left_out_note(result.left_out),
    ]
    if sweep:
        picture = base64.b64encode(sweep).decode()
        body += [
            "<h2>Strength of the regularisation</h2>",
            f'<img class="plot" src="data:image/png;base64,{picture}" alt="accuracy by C">',
        ]
    body += ["<h2>Classes</h2>", *_classes(rows, names), "<h2>Confusion</h2>", _MATRIX]
    pairs = top_confusions(scores.confusion, CONFUSIONS)
    document = confusion_data(scores.confusion, names)
    if (left := scores.confusion.nnz - len(document["cells"])) > 0:
        body.append(f"<p class=note>{left:,} cells, the smallest, are not drawn.</p>")
    if pairs:
        rows_of_pairs = [
            (text(names[i]), _link(i, j, names), f"{count:,}") for i, j, count in pairs
        ]
        body += [
            "<h3>Most frequent confusions</h3>",
            f"<div class=scroll>{table(('class', 'taken for', 'rows'), rows_of_pairs, (2,))}</div>",
        ]
    shown, listed = _chosen(result, pairs)
    document["mistakes"] = [
        _listed(result, row, address_of(result.paths[row] or "")) for row in listed
    ]
    body += [*_mistakes(result, shown, len(listed)), data("confusion-data", document)]
    facts = facts_of(result.provenance)
    if isinstance(result, ZeroShotResult):
        facts["Templates"] = result.templates
    if isinstance(result, ProbeResult):
        facts["Fitted to"] = f"{result.num_fitted:,} images, C = {result.probe.C:.3g}"
    script = files("clip_jax.evaluate").joinpath("confusion.js").read_text("utf-8")
    return page(title, body, facts=facts, script=script)


def draw_sweep(sweep: Sweep, **options: Any) -> bytes:
    """Returns the accuracies of a search for C as a PNG."""
    drawing = figure()(figsize=(7, 4.5), layout="constrained")
    panel = drawing.subplots()
    strengths = [trial.C for trial in sweep.trials]
    panel.plot(strengths, [trial.accuracy for trial in sweep.trials], "o-", color="#30638e")
    panel.axvline(sweep.best.C, color="#d1495b", linestyle="--", label=f"C = {sweep.best.C:.3g}")
    panel.set(xscale="log", xlabel="C, inverse strength", ylabel="accuracy on validation rows")
    panel.legend()
    panel.grid(alpha=0.3)
    return png(drawing, **options)


def _classes(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> list[str]:
    shown, note = list(enumerate(rows)), []
    if len(rows) > CLASSES:
        # Classes without rows have no accuracy, and come last.
        shown.sort(key=lambda row: float(row[1][3] or 2))
        shown = shown[:CLASSES]
        note = [
            f"<p class=note>The {CLASSES:,} classes of the lowest accuracy; per_class.csv has all "
            f"{len(rows):,}.</p>"
        ]
    cells = [
        (text(row[0]), str(row[1]), str(row[2]), str(row[3]), _link(i, row[4], names))
        for i, row in shown
    ]
    return [*note, f"<div class=scroll>{table(COLUMNS, cells, (1, 2, 3))}</div>"]


def _link(true: int, predicted: int | None, names: Sequence[str]) -> str:
    if predicted is None:
        return ""
    return f'<a href="#mistakes" data-pair="{true},{predicted}">{text(names[predicted])}</a>'


def _chosen(
    result: ClassificationResult, pairs: Sequence[tuple[int, int, int]]
) -> tuple[list[int], list[int]]:
    """Returns the mistakes that have a picture, and those that are listed; most confident first."""
    scores = result.scores
    wrong = np.flatnonzero(scores.predicted != result.targets)
    wrong = wrong[np.argsort(-scores.confidence[wrong], kind="stable")]
    shown: set[int] = set(wrong[:SHOWN].tolist())
    for i, j, _ in pairs:
        of_pair: Int[np.ndarray, " p"] = wrong[
            (result.targets[wrong] == i) & (scores.predicted[wrong] == j)
        ]
        shown.update(of_pair[:OF_EACH].tolist())
    order = wrong.tolist()
    return (
        [row for row in order if row in shown],
        [row for row in order if row not in shown][:LISTED],
    )


def _listed(result: ClassificationResult, row: int, address: str | None) -> list[Any]:
    scores = result.scores
    confidence = round(float(scores.confidence[row]), 4)
    where = [int(result.targets[row]), int(scores.predicted[row])]
    return [*where, confidence, shortened(result.keys[row]), *([address] if address else [])]


def _mistakes(result: ClassificationResult, shown: Sequence[int], num_listed: int) -> list[str]:
    scores, names, origin = result.scores, result.class_names, result.provenance
    wrong = int(scores.count - scores.confusion.diagonal().sum())
    if not wrong:
        heading, note = "No mistakes", ""
    else:
        heading = f"{wrong:,} mistakes" if wrong > 1 else "1 mistake"
        note = "The most confident first."
        if wrong > len(shown):
            note = (
                f"Here are {len(shown):,}: the {SHOWN} most confident, and {OF_EACH} of each of "
                "the most frequent confusions. A click on a cell or a confusion lists its others"
            )
            left = wrong - len(shown) - num_listed
            note += f"; {left:,} less confident ones are left out." if left else "."
    thumbnails = Thumbnails(origin.image_column, origin.pictures) if origin else Thumbnails()
    cards = []
    for number, row in enumerate(shown, 1):
        true, predicted = int(result.targets[row]), int(scores.predicted[row])
        picture = thumbnails.picture(result.paths[row], names[true])
        cards.append(
            f'<li data-pair="{true},{predicted}">{picture}<div class=text>'
            f"<b>{number}. {scores.confidence[row]:.4f}</b><br>{text(names[true])}, taken for "
            f"{text(names[predicted])}<small>{text(result.keys[row])}</small></div></li>"
        )
    return [
        f'<h2 id="mistakes">{heading}</h2>',
        f"<p class=note>{note}</p>",
        '<p id="filter" hidden><b id="filtered"></b> <button id="all">all mistakes</button></p>',
        '<ol class="cards" id="cards">',
        *cards,
        '</ol>\n<ul id="listed"></ul>',
    ]
