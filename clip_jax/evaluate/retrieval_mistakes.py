"""The worst mistakes of retrieval: whose positive ranks last, and what was found before it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

# Mistakes that are kept of each direction, and how much of what was found before the positive.
KEPT, FOUND = 50, 3
# Rows that are compared with the queries at one time.
BLOCK = 1 << 16


@dataclasses.dataclass(frozen=True)
class RetrievalMistake:
    """An image whose captions, or a caption whose image, are not the most similar.

    Attributes:
        query: the image or caption that searches, as an index.
        positive: its image, or the most similar of its captions, as an index.
        rank: the place of the positive, from 2.
        score: the cosine of the query with the positive.
        found: what is most similar but doesn't belong to it, best first: indices and cosines.
    """

    query: int
    positive: int
    rank: int
    score: float
    found: Sequence[tuple[int, float]]


def worst_mistakes(
    ranks: Int[np.ndarray, " q"],
    queries: Float[np.ndarray, "q d"],
    others: Float[np.ndarray, "o d"],
    image_of_query: Int[np.ndarray, " q"],
    image_of_other: Int[np.ndarray, " o"],
) -> list[RetrievalMistake]:
    """Returns those of one direction, the worst first.

    Args:
        ranks: (q,) of each query's positive, from 1.
        queries: (q, d) embeddings, normalised or not.
        others: (o, d) the embeddings that are searched.
        image_of_query: (q,) the image that each query is or belongs to.
        image_of_other: (o,) the image that each of the others is or belongs to.
    """
    wrong = np.flatnonzero(ranks > 1)
    wrong = wrong[np.argsort(-ranks[wrong], kind="stable")][:KEPT]
    if not len(wrong):
        return []
    rows = _unit(queries[wrong])
    best = np.full((len(wrong), 1), -np.inf), np.full((len(wrong), 1), -1)  # positives
    negatives = best
    for begin in range(0, len(others), BLOCK):
        block = slice(begin, begin + BLOCK)
        scores = rows @ _unit(others[block]).T
        numbers = np.broadcast_to(np.arange(len(others))[block], scores.shape)
        is_positive = image_of_other[block] == image_of_query[wrong][:, None]
        best = _most(best, np.where(is_positive, scores, -np.inf), numbers, 1)
        negatives = _most(negatives, np.where(is_positive, -np.inf, scores), numbers, FOUND)
    mistakes = []
    for i, query in enumerate(wrong.tolist()):
        found = zip(negatives[1][i].tolist(), negatives[0][i].tolist(), strict=True)
        mistakes.append(
            RetrievalMistake(
                query=query,
                positive=int(best[1][i, 0]),
                rank=int(ranks[query]),
                score=float(best[0][i, 0]),
                found=[(row, score) for row, score in found if np.isfinite(score)],
            )
        )
    return mistakes


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _most(
    before: tuple[np.ndarray, np.ndarray], scores: np.ndarray, numbers: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the highest of the scores before and of these, with their numbers, best first."""
    scores = np.concatenate([before[0], scores], axis=1)
    numbers = np.concatenate([before[1], numbers], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)
