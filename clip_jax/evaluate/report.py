"""A folder that shows a classification: a table, the confusion matrix, the worst mistakes."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from clip_jax.embed import contact_sheet
from clip_jax.evaluate.scores import Scores
from clip_jax.evaluate.sweep import Sweep

PER_CLASS, CONFUSION, MISTAKES, SWEEP = (
    "per_class.csv",
    "confusion.png",
    "mistakes.html",
    "sweep.png",
)
# Mistakes on the sheet.
SHOWN = 100
# Classes up to which the matrix has their names.
NAMED = 50


def write_report(
    folder: str | os.PathLike[str],
    scores: Scores,
    class_names: Sequence[str],
    logits: Float[np.ndarray, "n k"],
    targets: Int[np.ndarray, " n"],
    keys: Sequence[str],
    paths: Sequence[str | None],
) -> None:
    """Writes the table, the picture, and the sheet, which needs no other file.

    Raises:
        ModuleNotFoundError: the extra `evaluate` is not installed.
        OSError: the folder can't be written.
    """
    out = Path(folder)
    _figure()  # says what is missing before anything is written
    out.mkdir(parents=True, exist_ok=True)
    _write_table(out / PER_CLASS, scores, class_names)
    _draw_confusion(out / CONFUSION, scores, class_names)
    (out / MISTAKES).write_text(_sheet(class_names, logits, targets, keys, paths), encoding="utf-8")


def draw_sweep(folder: str | os.PathLike[str], sweep: Sweep) -> None:
    """Draws the accuracy over the strengths; raises as `write_report`."""
    figure = _figure()(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    strengths = [trial.C for trial in sweep.trials]
    panel.plot(strengths, [trial.accuracy for trial in sweep.trials], "o-", color="#30638e")
    panel.axvline(sweep.best.C, color="#d1495b", linestyle="--", label=f"C = {sweep.best.C:.3g}")
    panel.set(xscale="log", xlabel="C, the inverse strength", ylabel="accuracy on validation rows")
    panel.legend()
    panel.grid(alpha=0.3)
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder) / SWEEP, dpi=110)


def _write_table(path: Path, scores: Scores, class_names: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "rows", "right", "accuracy", "most often taken for"))
        for i, (name, counts) in enumerate(zip(class_names, scores.confusion, strict=True)):
            wrong = np.where(np.arange(len(counts)) == i, 0, counts)
            other = class_names[int(wrong.argmax())] if wrong.any() else ""
            rows = counts.sum()
            accuracy = f"{counts[i] / rows:.4f}" if rows else ""
            writer.writerow((name, rows, counts[i], accuracy, other))


def _draw_confusion(path: Path, scores: Scores, class_names: Sequence[str]) -> None:
    counts = scores.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(3 + 0.3 * len(counts), 5, 16))
    figure = _figure()(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=panel, label="share of the class's rows", shrink=0.8)
    panel.set(xlabel="taken for", ylabel="is")
    if len(counts) <= NAMED:
        # Names are text: matplotlib would read a formula between dollar signs.
        names = [name.replace("$", r"\$") for name in class_names]
        panel.set_xticks(range(len(names)), names, rotation=90)
        panel.set_yticks(range(len(names)), names)
    figure.savefig(path, dpi=110)


def _sheet(
    class_names: Sequence[str],
    logits: Float[np.ndarray, "n k"],
    targets: Int[np.ndarray, " n"],
    keys: Sequence[str],
    paths: Sequence[str | None],
) -> str:
    """The mistakes that the classifier is surest of, first the surest; everything is escaped."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = 1 / weights.sum(axis=1)  # of the first class, whose weight is 1
    taken = logits.argmax(axis=1)
    wrong = np.flatnonzero(taken != targets)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    own_names, other_names = (
        [class_names[i] for i in numbers[wrong]] for numbers in (targets, taken)
    )
    mistakes = [
        {
            "key": keys[row],
            "score": float(confidence[row]),
            "path": paths[row],
            "caption": f"{own}, taken for {other}",
        }
        for row, own, other in zip(wrong, own_names, other_names, strict=True)
    ]
    return contact_sheet(mistakes, f"The {len(mistakes)} most confident mistakes")


def _figure() -> type:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the report draws with matplotlib: pip install 'clip-jax-flax[evaluate]'"
        ) from None
    return Figure
