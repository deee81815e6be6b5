"""Pages of evaluations whose names have to be escaped, and their tags."""

import dataclasses
import html.parser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluate import (
    ClassificationResult,
    LeftOut,
    Provenance,
    RetrievalMistake,
    RetrievalResult,
    ZeroShotResult,
    report,
)
from clip_jax.evaluate.scores import score

# Quotes, HTML, and scripts that are written from right to left.
ODD = (
    'a <b>bold</b> "name"',
    "</script><script>alert(1)</script>",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u0642\u0637\u0629 \u0633\u0648\u062f\u0627\u0621",
    "it's $x$ &amp;",
)
PROVENANCE = Provenance("pets <x>", "ViT-B/32", "0123456789abcdef", "2026-01-02T03:04:05+00:00")


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.all: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.all.append((tag, {name: value or "" for name, value in attributes}))


def zero_shot(names: Sequence[str], paths: Sequence[Path], rows: int = 12) -> ZeroShotResult:
    """A classification in which every class is taken for the next one but once."""
    targets = np.arange(rows) % len(names)
    predicted = np.where(np.arange(rows) < 2, targets, (targets + 1) % len(names))
    logits = np.eye(len(names))[predicted] * np.linspace(1, 3, rows)[:, None]
    files = [str(paths[row % len(paths)]) for row in range(rows)]
    return ZeroShotResult(
        score(logits, targets), names, targets, files, files, LeftOut(["<i>: damaged"]),
        provenance=PROVENANCE, templates=["a photo of a {}.", "a <b>{}</b>."],
    )  # fmt: skip


def classified(names: Sequence[str], paths: Sequence[Path]) -> str:
    """The page about it."""
    return page_of("a <b>title", zero_shot(names, paths))


def retrieved(captions: Sequence[str], paths: Sequence[Path], /, **fields: Any) -> str:
    """The page about a retrieval whose every row is a mistake."""
    count = len(captions)
    pairs = np.arange(count) % len(paths)
    wrong = {
        "image_to_text": [
            RetrievalMistake(i, i, i + 2, 0.1, [((i + 1) % count, 0.9)]) for i in range(len(paths))
        ],
        "text_to_image": [
            RetrievalMistake(t, int(pairs[t]), 2, 0.1, [((int(pairs[t]) + 1) % len(paths), 0.9)])
            for t in range(count)
        ],
    }
    ranks = {way: np.array([each.rank for each in mistakes]) for way, mistakes in wrong.items()}
    recalls = {way: {1: 0.0, 5: 0.5, 10: 1.0} for way in wrong}
    files = [str(path) for path in paths]
    result = RetrievalResult(
        len(paths), count, recalls, LeftOut(), ranks, wrong, pairs, files, files, captions,
        PROVENANCE,
    )  # fmt: skip
    return page_of("a <b>title", dataclasses.replace(result, **fields))


def page_of(title: str, result: ClassificationResult | RetrievalResult) -> str:
    """The page of a report."""
    make = (
        report._of_retrieval if isinstance(result, RetrievalResult) else report._of_classification
    )
    return make(title, result)[report.PAGE].decode()
