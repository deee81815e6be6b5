"""Recall at k of images and texts that find each other, in blocks: no N x N matrix is ever held."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

# Rows of images and of texts that are compared at one time.
BLOCK = 2048


def recall_at_k(
    image_embeddings: Float[np.ndarray, "i d"],
    text_embeddings: Float[np.ndarray, "t d"],
    pairs: Int[np.ndarray, " t"] | None = None,
    ks: Sequence[int] | Int[np.ndarray, " k"] = (1, 5, 10),
) -> dict[str, dict[int, float]]:
    """How often what belongs together is among the k nearest (Radford et al. 2021, section 3.1.4).

    From image to text an image counts if one of its texts is among the k nearest texts; from text
    to image a text counts if its image is among the k nearest images. A stranger as near as the own
    one comes before it. The result is that of float64: cosines are computed in float32, and again
    in float64 where rounding could matter.

    Args:
        image_embeddings: (i, d), normalised or not.
        text_embeddings: (t, d), likewise.
        pairs: (t,) the number of each text's image, so that an image may have several texts; every
            image has one at least. Without it row i belongs to row i.
        ks: how many of the nearest count.

    Returns:
        `{"image_to_text": {1: ..., 5: ..., 10: ...}, "text_to_image": {...}}`, shares from 0 to 1.

    Raises:
        ValueError: shapes don't fit, an embedding is not finite or zero, an image has no text, or a
            k is no whole number from 1 on; names the rows.
    """
    image, text = _unit(image_embeddings, "image"), _unit(text_embeddings, "text")
    if image.shape[1] != text.shape[1]:
        raise ValueError(
            f"image and text embeddings must have one width. Got {image.shape} and {text.shape}."
        )
    counts = _counts(ks)
    owners = _owners(pairs, len(image), len(text))
    # What belongs together, exactly; of an image the nearest of its texts.
    own_text = np.concatenate(
        [
            np.einsum("td,td->t", text[begin : begin + BLOCK], image[owners[begin : begin + BLOCK]])
            for begin in range(0, len(text), BLOCK)
        ]
    )
    own_image = np.full(len(image), -np.inf)
    np.maximum.at(own_image, owners, own_text)

    images = _Side(image, np.arange(len(image)), own_image)
    texts = _Side(text, owners, own_text)
    before_image, before_text = _strangers_before(images, texts, "float32")
    for before, side, other, place in (
        (before_image, images, texts, 0),
        (before_text, texts, images, 1),
    ):
        doubtful = np.flatnonzero(
            np.any([(before.certain < k) & (before.certain + before.close >= k) for k in counts], 0)
        )
        if len(doubtful):
            rows = _Side(*(array[doubtful] for array in side))
            sides = (rows, other) if place == 0 else (other, rows)
            exact = _strangers_before(*sides, "float64")[place]
            before.certain[doubtful], before.close[doubtful] = exact.certain, exact.close
    return {
        name: {k: float(np.mean(before.certain + before.close < k)) for k in counts}
        for name, before in (("image_to_text", before_image), ("text_to_image", before_text))
    }


class _Side(NamedTuple):
    """Images or texts: unit vectors, whom they belong to, and how near their own is."""

    rows: Float[np.ndarray, "n d"]
    owners: Int[np.ndarray, " n"]
    own: Float[np.ndarray, " n"]


class _Before(NamedTuple):
    """How many strangers are nearer than the own one for certain, and how many as near."""

    certain: Int[np.ndarray, " n"]
    close: Int[np.ndarray, " n"]


def _strangers_before(images: _Side, texts: _Side, dtype: str) -> tuple[_Before, _Before]:
    """For each image among all texts, and for each text among all images."""
    # Of products of unit vectors, whose rounding errors are as good as independent.
    error = 4 * float(np.finfo(dtype).eps) * np.sqrt(images.rows.shape[1])
    counts = tuple(_Before(*np.zeros((2, len(side.rows)), np.int64)) for side in (images, texts))
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        blocks = [_put(texts, begin, dtype) for begin in range(0, len(texts.rows), BLOCK)]
        for i in range(0, len(images.rows), BLOCK):
            block = _put(images, i, dtype)
            found = [_compare(block, other, error) for other in blocks]
            for t, (of_images, of_texts) in zip(
                range(0, len(texts.rows), BLOCK), found, strict=True
            ):
                for count, begin, block_counts in (
                    (counts[0], i, of_images),
                    (counts[1], t, of_texts),
                ):
                    for total, part in zip(count, block_counts, strict=True):
                        target = total[begin : begin + BLOCK]
                        target += np.asarray(part)[: len(target)]
    return counts[0], counts[1]


def _put(side: _Side, begin: int, dtype: str) -> Any:
    """A block on the device, filled up with strangers that are near to nobody."""
    rows, owners, own = (array[begin : begin + BLOCK] for array in side)
    filling = min(BLOCK, len(side.rows)) - len(rows)
    return jax.device_put(
        (
            np.pad(rows.astype(dtype), ((0, filling), (0, 0))),
            np.pad(owners.astype(np.int32), (0, filling), constant_values=-1),
            np.pad(own.astype(dtype), (0, filling)),
        )
    )


@jax.jit
def _compare(images: Any, texts: Any, error: Any) -> tuple[Any, Any]:
    image, image_owners, own_image = images
    text, text_owners, own_text = texts
    cosines = image @ text.T
    strangers = image_owners[:, None] != text_owners
    strangers &= (image_owners[:, None] >= 0) & (text_owners >= 0)
    count = functools.partial(_count, cosines, strangers, error)
    return count(own_image[:, None], 1), count(own_text[None, :], 0)


def _count(
    cosines: Float[Array, "i t"],
    strangers: Bool[Array, "i t"],
    error: Float[Array, ""],
    own: Array,
    axis: int,
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    certain = strangers & (cosines > own + error)
    near = strangers & (cosines >= own - error)
    return certain.sum(axis), (near & ~certain).sum(axis)


def _unit(embeddings: Any, name: str) -> Float[np.ndarray, "n d"]:
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or not embeddings.size:
        raise ValueError(
            f"{name} embeddings must have the shape (rows, width). Got {embeddings.shape}."
        )
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0))[:, 0]).tolist():
        shown = ", ".join(map(str, bad[:10])) + (" and more" if len(bad) > 10 else "")
        raise ValueError(
            f"{name} embeddings must be finite and not zero. Rows that aren't: {shown}."
        )
    return embeddings / norms


def _counts(ks: Any) -> list[int]:
    counts = np.asarray(ks)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not len(counts) or counts.min() < 1:
        raise ValueError(f"ks must be a sequence of whole numbers from 1 on. Got {ks!r}.")
    return counts.tolist()


def _owners(pairs: Any, num_images: int, num_texts: int) -> Int[np.ndarray, " t"]:
    if pairs is None:
        if num_images != num_texts:
            raise ValueError(
                f"without pairs there must be as many images as texts. Got {num_images} and "
                f"{num_texts}: give the number of each text's image."
            )
        return np.arange(num_images)
    owners = np.asarray(pairs)
    if owners.shape != (num_texts,) or owners.dtype.kind not in "iu":
        raise ValueError(
            f"pairs must be {num_texts} whole numbers, one for each text. "
            f"Got {owners.dtype} of the shape {owners.shape}."
        )
    if len(bad := np.flatnonzero((owners < 0) | (owners >= num_images))):
        raise ValueError(
            f"pairs must be from 0 to {num_images - 1}. Text {bad[0]} has {owners[bad[0]]}."
        )
    without = np.setdiff1d(np.arange(num_images), owners)
    if len(without):
        raise ValueError(
            f"{len(without)} images have no text, such as image {without[0]}: leave them out."
        )
    return owners.astype(np.int64)
