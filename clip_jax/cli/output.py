"""How all commands print."""

import json
import sys
from collections.abc import Sequence
from typing import Any


def complain(message: str) -> None:
    """Prints an error. Its first line is complete in itself; more lines list the problems."""
    lines = "\n".join(printable(line) for line in message.split("\n"))
    sys.stderr.write(f"clip-jax: {lines}\n")  # one call: other threads may print


def tell_what_it_knows(model: str | None) -> None:
    """Prints a line for a model that only knows pictures of one kind."""
    if model == "emoji":
        complain(
            "the model emoji knows drawings of emoji alone; of photographs it is confidently "
            "wrong: take --model ViT-B/32 for these"
        )


def printable(text: str) -> str:
    """Returns text, such as a file's name, with line breaks and control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def print_json(document: Any) -> None:
    """Prints a JSON document, in ASCII so that it survives any terminal and pipe."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Prints columns under their headers.

    Args:
        header: one name for each column.
        rows: cells in the order of the header.
        left: how many of the first columns are aligned to the left; the others are to the right.
    """
    lines = [tuple(map(printable, line)) for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
