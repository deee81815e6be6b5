"""How good predictions are: top-1 and its interval, top-5, mean per class, confusion."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

# Standard deviations on either side that hold 95% of a normal distribution.
DEVIATIONS = 1.959964


@dataclasses.dataclass(frozen=True)
class Scores:
    """Figures of a classification, shares from 0 to 1.

    Attributes:
        count: rows.
        top1: the share of rows whose class is the first.
        interval: where top1 lies with 95% confidence, by Wilson's score.
        top5: the share of rows whose class is among the first five.
        mean_per_class: the mean of the classes' top1, of those with rows.
        confusion: (k, k) rows of a class that are taken for another, or for itself.
    """

    count: int
    top1: float
    interval: tuple[float, float]
    top5: float
    mean_per_class: float
    confusion: Int[np.ndarray, "k k"]


def score(logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, " n"]) -> Scores:
    """Compares logits with the classes' numbers; of equal logits the first class comes first."""
    if not len(targets):
        raise ValueError("there are no rows to score")
    own = np.take_along_axis(logits, targets[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < targets[:, None]
    ranks = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
    confusion = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(confusion, (targets, logits.argmax(axis=1)), 1)
    rows = confusion.sum(axis=1)
    per_class = np.diag(confusion)[rows > 0] / rows[rows > 0]
    right = int((ranks == 0).sum())
    return Scores(
        count=len(targets),
        top1=right / len(targets),
        interval=wilson(right, len(targets)),
        top5=float(np.mean(ranks < 5)),
        mean_per_class=float(per_class.mean()),
        confusion=confusion,
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927): sound for few rows and for shares near 0 and 1."""
    share, square = right / count, DEVIATIONS**2
    middle = share + square / (2 * count)
    half = DEVIATIONS * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + square / count) for sign in (-1, 1))
    return max(float(low), 0.0), min(float(high), 1.0)
