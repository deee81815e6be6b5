"""How good predictions are: top-1 and its interval, top-5, mean per class, confusion."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Standard deviations on either side that hold 95% of a normal distribution.
DEVIATIONS = 1.959964
# Logits that are in memory at one time: 128 MB of them.
LOGITS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of a classification, shares from 0 to 1.

    Attributes:
        count: rows.
        top1: the share of rows whose class is the first.
        interval: where top1 lies with 95% confidence, by Wilson's score.
        top5: the share of rows whose class is among the first five.
        mean_per_class: the mean of the classes' top1, of those with rows.
        confusion: (k, k) rows of a class that are taken for another, or for itself; a sparse array
            of SciPy's, which holds no more numbers than there are rows.
        taken: (n,) the class that each row is taken for.
        confidence: (n,) how probable that class is.
    """

    count: int
    top1: float
    interval: tuple[float, float]
    top5: float
    mean_per_class: float
    confusion: Any
    taken: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]


def score(logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> Scores:
    """Compares logits with the classes' numbers; of equal logits the first class comes first.

    Raises:
        ValueError: there are no rows, or a logit is not finite.
    """
    return score_blocks([logits], targets)


def blocks(rows: int, classes: int) -> Iterator[slice]:
    """Rows in slices of which the logits of all classes fit into memory."""
    size = max(LOGITS // max(classes, 1), 1)
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def score_blocks(
    logits: Iterable[Float[np.ndarray, "b k"]], targets: Int[np.ndarray, " n"]
) -> Scores:
    """As `score`, of logits that come some rows at a time; raises the same."""
    from scipy.sparse import coo_array

    if not len(targets):
        raise ValueError("there are no rows to score")
    found, begin, num_classes = [], 0, 0
    for block in logits:
        # No comparison with NaN is true, so that nothing would come before a row's own class.
        if len(bad := np.flatnonzero(~np.isfinite(block).all(axis=1))):
            raise ValueError(
                f"row {begin + bad[0]} has scores that are not finite: its embedding or the "
                "model's weights are damaged, get them again"
            )
        found.append(_judge(block, targets[begin : begin + len(block)]))
        begin, num_classes = begin + len(block), block.shape[1]
    ranks, taken, confidence = map(np.concatenate, zip(*found, strict=True))
    ones = np.ones(len(targets), np.int64)
    # Equal places are added up.
    confusion = coo_array((ones, (targets, taken)), shape=(num_classes, num_classes)).tocsr()
    rows = confusion.sum(axis=1)
    per_class = confusion.diagonal()[rows > 0] / rows[rows > 0]
    right = int((ranks == 0).sum())
    return Scores(
        count=len(targets),
        top1=right / len(targets),
        interval=wilson(right, len(targets)),
        top5=float(np.mean(ranks < 5)),
        mean_per_class=float(per_class.mean()),
        confusion=confusion,
        taken=taken,
        confidence=confidence,
    )


def _judge(
    logits: Float[np.ndarray, "b k"], targets: Int[np.ndarray, " b"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row how many classes come before its own, the first class and its probability."""
    own = np.take_along_axis(logits, targets[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    ranks = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    # The first class's weight is 1.
    return ranks, logits.argmax(axis=1), 1 / weights.sum(axis=1)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): sound for few rows and for shares near 0 and 1."""
    share, square = right / count, DEVIATIONS**2
    middle = share + square / (2 * count)
    half = DEVIATIONS * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + square / count) for sign in (-1, 1))
    return max(float(low), 0.0), min(float(high), 1.0)
