"""Recall at k of images and texts that search for each other, in blocks of rows.

The matrix of all cosines is never in memory: an image's or a text's rank is the number of negatives
that score higher than its positive, and these are counted block by block.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from clip_jax.messages import some

# Images and texts that are compared at one time.
BLOCK = 2048
# The numbers of results that are looked at.
KS = (1, 5, 10)
# The ranks between which a report counts.
EXACT_RANKS = (1, 5, 10, 100, 1_000, 10_000, 100_000)


def recall_at_k(
    image_embeddings: Float[np.ndarray, "i d"],
    text_embeddings: Float[np.ndarray, "t d"],
    pairs: Int[np.ndarray, " t"] | None = None,
    ks: Sequence[int] | Int[np.ndarray, " k"] = KS,
) -> dict[str, dict[int, float]]:
    """Returns how often a positive is among the k most similar (Radford et al. 2021, 3.1.4).

    From image to text, an image counts if one of its texts is among the k texts most similar to it.
    From text to image, a text counts if its image is among the k images most similar to it. A
    negative that is as similar as the positive ranks before it, so that a model whose embeddings
    are all alike scores nothing. The result is that of float64: cosines are computed in float32,
    and again in float64 where rounding could change the result.

    Example:
        >>> import numpy as np
        >>> recall_at_k(np.eye(3), np.eye(3)[[0, 2, 1]], ks=[1, 3])["image_to_text"]
        {1: 0.3333333333333333, 3: 1.0}

    Args:
        image_embeddings: (i, d), normalised or not.
        text_embeddings: (t, d), normalised or not.
        pairs: (t,) the row of each text's image. An image may have several texts and must have at
            least one. Without it, image i and text i belong together.
        ks: the numbers of results to look at.

    Returns:
        `{"image_to_text": {1: ..., 5: ..., 10: ...}, "text_to_image": {...}}`, shares from 0 to 1.

    Raises:
        ValueError: shapes don't fit, an embedding is zero or not finite, an image has no text, or a
            k is not a whole number from 1 on; names the rows.
    """
    return recalls(ranks_of_positives(image_embeddings, text_embeddings, pairs, ks), ks)


def recalls(
    ranks: dict[str, Int[np.ndarray, " n"]], ks: Sequence[int] | Int[np.ndarray, " k"]
) -> dict[str, dict[int, float]]:
    """Returns the share of ranks up to each k, as `recall_at_k`."""
    return {name: {int(k): float(np.mean(found <= k)) for k in ks} for name, found in ranks.items()}


def ranks_of_positives(
    image_embeddings: Float[np.ndarray, "i d"],
    text_embeddings: Float[np.ndarray, "t d"],
    pairs: Int[np.ndarray, " t"] | None,
    exact_at: Sequence[int] | Int[np.ndarray, " k"],
) -> dict[str, Int[np.ndarray, " n"]]:
    """Returns the place at which each image and each text finds its positive, from 1.

    Args:
        image_embeddings: as for `recall_at_k`.
        text_embeddings: as for `recall_at_k`.
        pairs: as for `recall_at_k`.
        exact_at: ranks that are told from larger ones as exactly as in float64. In between, a
            negative that is equal to the positive within float32's rounding ranks before it.

    Returns:
        (i,) the rank of each image's best text as "image_to_text", and (t,) that of each text's
        image as "text_to_image".

    Raises:
        ValueError: as `recall_at_k`.
    """
    image, text = _normalized(image_embeddings, "image"), _normalized(text_embeddings, "text")
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image and text embeddings must have one width. Got {image.shape} and {text.shape}."
        )
    counts = _check_ks(exact_at)
    image_of = _check_pairs(pairs, len(image), len(text))
    # A text's positive is its image; an image's positive is the most similar of its texts.
    text_positive = np.concatenate(
        [
            np.einsum("td,td->t", text[rows], image[image_of[rows]])
            for rows in (slice(begin, begin + BLOCK) for begin in range(0, len(text), BLOCK))
        ]
    )
    image_positive = np.full(len(image), -np.inf)
    np.maximum.at(image_positive, image_of, text_positive)

    images = _Side(image, np.arange(len(image)), image_positive)
    texts = _Side(text, image_of, text_positive)
    image_ranks, text_ranks = _count_negatives(images, texts, "float32")
    for ranks, side, other, place in (
        (image_ranks, images, texts, 0),
        (text_ranks, texts, images, 1),
    ):
        doubtful = np.flatnonzero(
            np.any([(ranks.above < k) & (ranks.above + ranks.close >= k) for k in counts], 0)
        )
        if len(doubtful):
            rows = _Side(*(array[doubtful] for array in side))
            sides = (rows, other) if place == 0 else (other, rows)
            exact = _count_negatives(*sides, "float64")[place]
            ranks.above[doubtful], ranks.close[doubtful] = exact.above, exact.close
    return {
        name: 1 + ranks.above + ranks.close
        for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks))
    }


class _Side(NamedTuple):
    """Images or texts that search for the others.

    Attributes:
        rows: embeddings of norm 1.
        image: the image that each row is or belongs to; -1 for padding.
        positive: the cosine of each row with its positive.
    """

    rows: Float[np.ndarray, "n d"]
    image: Int[np.ndarray, " n"]
    positive: Float[np.ndarray, " n"]


class _Ranks(NamedTuple):
    """Negatives of each row by how their cosine compares with the positive's.

    Attributes:
        above: higher by more than the rounding error.
        close: equal within the rounding error.
    """

    above: Int[np.ndarray, " n"]
    close: Int[np.ndarray, " n"]


def _count_negatives(images: _Side, texts: _Side, dtype: str) -> tuple[_Ranks, _Ranks]:
    """Compares every image with every text; returns the images' ranks and the texts'."""
    # Of a product of unit vectors; the errors of its terms are nearly independent.
    error = 4 * float(np.finfo(dtype).eps) * np.sqrt(images.rows.shape[1])
    ranks = tuple(_Ranks(*np.zeros((2, len(side.rows)), np.int64)) for side in (images, texts))
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        blocks = [_put(texts, begin, dtype) for begin in range(0, len(texts.rows), BLOCK)]
        for i in range(0, len(images.rows), BLOCK):
            block = _put(images, i, dtype)
            found = [_compare(block, other, error) for other in blocks]
            for t, (of_images, of_texts) in zip(
                range(0, len(texts.rows), BLOCK), found, strict=True
            ):
                for total, begin, part in ((ranks[0], i, of_images), (ranks[1], t, of_texts)):
                    for counts, more in zip(total, part, strict=True):
                        target = counts[begin : begin + BLOCK]
                        target += np.asarray(more)[: len(target)]
    return ranks[0], ranks[1]


def _put(side: _Side, begin: int, dtype: str) -> Any:
    """Puts a block on the device, padded to the size of the others."""
    rows, image, positive = (array[begin : begin + BLOCK] for array in side)
    padding = min(BLOCK, len(side.rows)) - len(rows)
    return jax.device_put(
        (
            np.pad(rows.astype(dtype), ((0, padding), (0, 0))),
            np.pad(image.astype(np.int32), (0, padding), constant_values=-1),
            np.pad(positive.astype(dtype), (0, padding)),
        )
    )


@jax.jit
def _compare(images: Any, texts: Any, error: Any) -> tuple[Any, Any]:
    image, image_index, image_positive = images
    text, text_index, text_positive = texts
    cosines = image @ text.T
    image_index, text_index = image_index[:, None], text_index[None]
    negatives = (image_index != text_index) & (image_index >= 0) & (text_index >= 0)
    count = functools.partial(_count, cosines, negatives, error)
    return count(image_positive[:, None], 1), count(text_positive[None, :], 0)


def _count(
    cosines: Float[Array, "i t"],
    negatives: Bool[Array, "i t"],
    error: Float[Array, ""],
    positive: Array,
    axis: int,
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    above = negatives & (cosines > positive + error)
    close = negatives & (cosines >= positive - error) & ~above
    return above.sum(axis), close.sum(axis)


def _normalized(embeddings: Any, name: str) -> Float[np.ndarray, "n d"]:
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(
            f"{name} embeddings must have the shape (rows, width). Got {embeddings.shape}."
        )
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0))[:, 0]).tolist():
        raise ValueError(
            f"{name} embeddings must be finite and not zero. Rows that aren't: {some(bad)}."
        )
    return embeddings / norms


def _check_ks(ks: Any) -> list[int]:
    counts = np.asarray(ks)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or counts.min() < 1:
        raise ValueError(f"ks must be a sequence of whole numbers from 1 on. Got {ks!r}.")
    return counts.tolist()


def _check_pairs(pairs: Any, num_images: int, num_texts: int) -> Int[np.ndarray, " t"]:
    """Returns the image of each text."""
    if pairs is None:
        if num_images != num_texts:
            raise ValueError(
                f"without pairs there must be as many images as texts. Got {num_images} and "
                f"{num_texts}: give the number of each text's image."
            )
        return np.arange(num_images)
    image_of = np.asarray(pairs)
    if image_of.shape != (num_texts,) or image_of.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be {num_texts} whole numbers, one for each text. "
            f"Got {image_of.dtype} of the shape {image_of.shape}."
        )
    if len(bad := np.flatnonzero((image_of < 0) | (image_of >= num_images))):
        raise ValueError(
            f"pairs must be from 0 to {num_images - 1}. Text {bad[0]} has {image_of[bad[0]]}."
        )
    without = np.setdiff1d(np.arange(num_images), image_of)
    if len(without):
        raise ValueError(
            f"{len(without)} images have no text, such as image {without[0]}: leave them out."
        )
    return image_of.astype(np.int64)
