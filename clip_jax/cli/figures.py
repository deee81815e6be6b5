"""The figures of an evaluation on standard output, and as an exit status."""

import sys
from typing import Any

from clip_jax.cli.output import complain, print_json, print_table
from clip_jax.messages import MOST


def show_classification(document: dict[str, Any], as_json: bool) -> None:
    """Prints the figures at once, so that they are there even if the report then fails."""
    print_json(document) if as_json else _print(document)
    sys.stdout.flush()


def show_retrieval(document: dict[str, Any], as_json: bool) -> None:
    """Prints the recalls at once, so that they are there even if the report then fails."""
    if as_json:
        print_json(document)
        sys.stdout.flush()
        return
    print(f"{document['images']} images, {document['texts']} texts")
    recalls = {way: document[way] for way in ("image_to_text", "text_to_image")}
    rows = [
        (way.replace("_", " "), *(f"{share:.2%}" for share in shares.values()))
        for way, shares in recalls.items()
    ]
    print_table(("recall", *(f"at {k}" for k in recalls["image_to_text"])), rows)
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


def report_left_out(left_out: Any) -> int:
    """Prints what could not be read, as errors, and returns the exit status.

    What an embedding job lacks is not printed again: a warning has said it.
    """
    for problem in left_out.problems[:MOST]:
        complain(problem)
    if (more := len(left_out.problems) - MOST) > 0:
        complain(f"and {more} more that can't be read")
    return 1 if left_out else 0
