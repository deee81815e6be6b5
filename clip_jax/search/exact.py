"""Exact search: every embedding is compared with the query, block by block on the device."""

import concurrent.futures
import functools
import operator
import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int
from PIL import Image

from clip_jax.embed import check_model
from clip_jax.embed.results import finished_job, parts_of
from clip_jax.memory import aligned_empty
from clip_jax.nn import CLIP, normalize
from clip_jax.placement import default_device
from clip_jax.preprocess import Preprocess, open_image
from clip_jax.search.index import Damaged, Index
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.storage import folder
from clip_jax.weights import load
from clip_jax.weights.loader import Resizing
from clip_jax.weights.tokenizers import string_tokenizer

# Bytes of a block: it fits in a CPU's cache; elsewhere it is large enough to pay for the transfer.
BLOCK = {"cpu": 8 << 20}
LARGE_BLOCK = 64 << 20
# The largest cosine, with rounding; embeddings that give more are damaged.
MOST = 1.1
# While one block is compared, another is read.
THREADS = 2


def search(
    out: str | os.PathLike[str],
    model: CLIP | str | os.PathLike[str] | None,
    query: str | Image.Image | os.PathLike[str],
    k: int = 10,
    *,
    load_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Finds the rows of an embedding job whose embeddings are nearest to a query's.

    Args:
        out: the job's folder.
        model: the job's model, or what `clip_jax.load` takes; None to load the one that the job
            had, if that was given by name or path.
        query: a text (`str`); or a picture, as an image or as an `os.PathLike` path.
        k: how many rows.
        load_options: as for `clip_jax.embed.embed`; by default those of the job.

    Returns:
        Dicts of `key`, `score` (the cosine), `path` (None for texts), and `caption` if the rows
        have one; best first, ties in the order of the input.

    Raises:
        ValueError: there are no embeddings; they are of another model; `k` is less than 1; the
            picture can't be read.
        TypeError: `k` is no integer.
        OSError: the output can't be read.

    Warns:
        Incomplete: parts are missing or damaged; the message says how many rows are left out.
    """
    if operator.index(k) < 1:
        raise ValueError(f"k must be at least 1. Got {k}.")
    out = folder(out)
    job = finished_job(out)
    source = job["model"] if model is None else model
    model = _model(out, job, model, load_options)
    tokenizer = None
    if isinstance(query, str):
        name = None if isinstance(source, CLIP) else source
        tokenizer = string_tokenizer(model.config.text, name)
    index = Index(out, job)
    embedding = embed_query(model, query, tokenizer)
    while True:
        try:
            scores, numbers = best_rows(index, embedding, k)
            rows = index.rows(numbers)
            break
        except Damaged as error:
            index.leave_out(error.parts)
    for warning in index.gaps.warnings(out, parts_of(out, job).table):
        warnings.warn(warning, stacklevel=2)
    found = []
    for score, row in zip(scores, rows, strict=True):
        path = row.get("path", row.get("image_path"))
        hit = {"key": row["key"], "score": score, "path": path}
        if "caption" in row:
            hit["caption"] = row["caption"]
        found.append(hit)
    return found


def embed_query(
    model: CLIP,
    query: str | Image.Image | os.PathLike[str],
    tokenizer: AnyTokenizer | None = None,
) -> Float[np.ndarray, " d"]:
    """Returns the normalised embedding of a text, by CLIP's tokenizer or another, or a picture."""
    if isinstance(query, str):
        tokens = (tokenizer or string_tokenizer(model.config.text))(query, truncate=True)
        return np.asarray(normalize(model.encode_text(tokens))[0], np.float32)
    image = query if isinstance(query, Image.Image) else open_image(query)
    pixels = Preprocess(model.config.vision.image_size, model.config.pixels).pixels(image)
    return np.asarray(normalize(model.encode_image(pixels[None]))[0], np.float32)


def best_rows(
    index: Index, query: Float[np.ndarray, " d"], k: int
) -> tuple[list[float], list[int]]:
    """Returns the scores and the numbers of the rows nearest to a query, best first.

    Args:
        index: the rows.
        query: a normalised embedding.
        k: how many rows; all if there are fewer.

    Raises:
        Damaged: parts can't be read, or hold impossible values; names all of them.
        OSError: the output can't be read.
    """
    width = index.dim * index.dtype.itemsize
    size = max(BLOCK.get(default_device().platform, LARGE_BLOCK) // width, 1)
    size = min(size, index.num_rows)
    mine = threading.local()
    damaged: set[str] = set()
    query_there = jax.device_put(query)

    def compare(block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        begin, end = block
        if not hasattr(mine, "rows"):
            mine.rows = aligned_empty((size, index.dim), index.dtype)
            mine.rows[:] = 0
        try:
            index.read(begin, end, mine.rows)
        except Damaged as error:
            damaged.update(error.parts)
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scores, rows, is_sound = _best(mine.rows, query_there, end - begin, min(k, size))
        # Fetched before the next block is read: a CPU device may compute in this very buffer.
        scores, rows = np.asarray(scores), np.asarray(rows)
        if not is_sound:
            with np.errstate(all="ignore"):
                found = np.abs(mine.rows[: end - begin].astype(np.float32) @ query)
            wrong = np.flatnonzero(~(found <= MOST)).tolist()
            damaged.update(index.part_of(begin + row) for row in wrong)
        there = rows < end - begin
        return scores[there], begin + rows[there]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(compare, index.blocks(size)))
    if damaged:
        raise Damaged(damaged)
    scores = np.concatenate([scores for scores, _ in found])
    rows = np.concatenate([rows for _, rows in found])
    order = np.lexsort((rows, -scores))[:k]
    return scores[order].tolist(), rows[order].tolist()


@functools.partial(jax.jit, static_argnums=3)
def _best(
    rows: Float[Array, "b d"], query: Float[Array, " d"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, " k"], Int[Array, " k"], Bool[Array, ""]]:
    # No matrix product: reading the rows dominates, and this is exact on every device.
    scores = (rows.astype(jnp.float32) * query[None]).sum(axis=-1)
    is_there = jnp.arange(len(rows)) < count
    is_sound = (jnp.abs(scores) <= MOST) | ~is_there  # false for NaN
    return *jax.lax.top_k(jnp.where(is_there, scores, -jnp.inf), k), is_sound.all()


def _model(
    out: str,
    job: dict[str, Any],
    model: CLIP | str | os.PathLike[str] | None,
    options: Mapping[str, Any] | None,
) -> CLIP:
    model = job["model"] if model is None else model
    if model is None:
        raise ValueError(f"{out} doesn't know its model by name or path: give the model")
    if not isinstance(model, CLIP):
        how: Mapping[str, Any] = job.get("load_options", {}) if options is None else options
        Resizing.check_options(how)
        model = load(model, **how)[0]
    check_model(out, job, model)
    return model
