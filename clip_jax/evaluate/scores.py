"""The figures of a classification: top-1 and its interval, top-5, mean per class, confusion."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

# Standard deviations on either side of the mean that hold 95% of a normal distribution.
DEVIATIONS = 1.959964
# Logits in memory at one time: 128 MB of float64.
LOGITS = 1 << 24


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of a classification. Shares are from 0 to 1.

    Attributes:
        count: the number of rows.
        top1: the share of rows whose class has the highest logit.
        interval: the 95% confidence interval of top1, by Wilson's score.
        top5: the share of rows whose class is among the five highest logits.
        mean_per_class: the mean of the accuracies of the classes that have rows.
        confusion: (k, k) at [i, j] the number of rows of class i that are predicted as class j; a
            sparse array of SciPy's, as there may be many classes.
        predicted: (n,) the class with the highest logit.
        confidence: (n,) the probability of that class: its share of the softmax, or its own.
    """

    count: int
    top1: float
    interval: tuple[float, float]
    top5: float
    mean_per_class: float
    confusion: Any
    predicted: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]


def sigmoid(logits: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Returns 1 / (1 + exp(-logits)), without overflow."""
    weights = np.exp(-np.abs(logits))
    return np.where(logits < 0, weights, 1) / (1 + weights)


def score(logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> Scores:
    """Returns the figures of logits. Of classes with equal logits, the first ranks first.

    Args:
        logits: (n, k) one for each class.
        targets: (n,) the class of each row, from 0 to k - 1.

    Raises:
        ValueError: there are no rows, or a logit is not finite.
    """
    return score_blocks([logits], targets)


def blocks(rows: int, classes: int) -> Iterator[slice]:
    """Cuts rows into slices that are so short that their logits of all classes fit into memory."""
    size = max(LOGITS // max(classes, 1), 1)
    return (slice(begin, begin + size) for begin in range(0, rows, size))


def score_blocks(
    logits: Iterable[Float[np.ndarray, "b k"]],
    targets: Int[np.ndarray, " n"],
    *,
    is_independent: bool = False,
) -> Scores:
    """Returns the figures of logits that come some rows at a time; raises as `score`.

    If each class has a probability of its own (`is_independent`), that is the confidence.
    """
    from scipy.sparse import coo_array

    if not len(targets):
        raise ValueError("there are no rows to score")
    found, begin, num_classes = [], 0, 0
    for block in logits:
        # No comparison with NaN is true, so a row with NaN would count as right.
        if len(bad := np.flatnonzero(~np.isfinite(block).all(axis=1))):
            raise ValueError(
                f"row {begin + bad[0]} has scores that are not finite: its embedding or the "
                "model's weights are damaged, get them again"
            )
        found.append(_predictions(block, targets[begin : begin + len(block)], is_independent))
        begin, num_classes = begin + len(block), block.shape[1]
    ranks, predicted, confidence = map(np.concatenate, zip(*found, strict=True))
    ones = np.ones(len(targets), np.int64)
    # Entries at the same place are added up.
    confusion = coo_array((ones, (targets, predicted)), shape=(num_classes, num_classes)).tocsr()
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
        predicted=predicted,
        confidence=confidence,
    )


def _predictions(
    logits: Float[np.ndarray, "b k"], targets: Int[np.ndarray, " b"], is_independent: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rank of each row's class, from 0; the predicted class; its probability."""
    target = np.take_along_axis(logits, targets[:, None], axis=1)
    is_earlier = np.arange(logits.shape[1]) < targets[:, None]
    ranks = ((logits > target) | ((logits == target) & is_earlier)).sum(axis=1)
    if is_independent:
        return ranks, logits.argmax(axis=1), sigmoid(logits.max(axis=1))
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    # The weight of the predicted class is 1.
    return ranks, logits.argmax(axis=1), 1 / weights.sum(axis=1)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Returns the 95% interval of a share (Wilson 1927), valid near 0 and 1 and for few rows."""
    share, square = right / count, DEVIATIONS**2
    middle = share + square / (2 * count)
    half = DEVIATIONS * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + square / count) for sign in (-1, 1))
    return max(float(low), 0.0), min(float(high), 1.0)
