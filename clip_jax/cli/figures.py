"""The figures of a classification: as a document, on standard output, and as an exit status."""

import sys
from collections.abc import Sequence
from typing import Any

from clip_jax.cli.output import complain, print_json, print_table


def document_of(scores: Any, names: Sequence[str]) -> dict[str, Any]:
    """The figures of `clip_jax.evaluate.scores.Scores`, as plain JSON."""
    rows, right = scores.confusion.sum(axis=1), scores.confusion.diagonal()
    return {
        "count": scores.count,
        "classes": len(names),
        "top1": scores.top1,
        "top1_interval": list(scores.interval),
        "top5": scores.top5,
        "mean_per_class": scores.mean_per_class,
        "per_class": {name: float(right[i] / rows[i]) for i, name in enumerate(names) if rows[i]},
    }


def show(document: dict[str, Any], as_json: bool) -> None:
    """Prints the figures at once: they are there whatever becomes of a report."""
    print_json(document) if as_json else _print(document)
    sys.stdout.flush()


def _print(document: dict[str, Any]) -> None:
    low, high = document["top1_interval"]
    if sweep := document.get("sweep"):
        rows = [
            (f"{t['C']:.3g}", f"{t['accuracy']:.2%}", f"{t['mean_per_class']:.2%}") for t in sweep
        ]
        print_table(("C", "validation", "mean per class"), rows, left=0)
        print()
    if "C" in document:
        print(f"fitted {document['fitted']} rows with C = {document['C']:.3g}")
    print(f"{document['count']} images of {document['classes']} classes")
    print(f"top-1           {document['top1']:7.2%}  (95% interval {low:.2%} to {high:.2%})")
    print(f"top-5           {document['top5']:7.2%}")
    print(f"mean per class  {document['mean_per_class']:7.2%}")


def status_of(problems: Sequence[str], missing: int) -> int:
    """Names what could not be read; of what an embedding job lacks a warning has told."""
    for problem in problems[:10]:
        complain(problem)
    if len(problems) > 10:
        complain(f"and {len(problems) - 10} more that can't be read")
    return 1 if problems or missing else 0
