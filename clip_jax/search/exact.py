"""Exact search: every embedding is compared with the query, block by block on the device."""

import concurrent.futures
import dataclasses
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
from PIL import Image, ImageOps

from clip_jax.config import Activation, NumHeads
from clip_jax.embed import check_model
from clip_jax.embed.identity import job_options
from clip_jax.embed.results import finished_job, parts_of
from clip_jax.image_size import ImageSize
from clip_jax.memory import aligned_empty
from clip_jax.nn import CLIP, normalize
from clip_jax.picture_options import PictureOptions
from clip_jax.placement import default_device
from clip_jax.preprocess import Fit, is_picture_file, open_image
from clip_jax.search.approximate import open_index
from clip_jax.search.index import MOST, Damaged, Index
from clip_jax.storage import folder
from clip_jax.weights import load
from clip_jax.weights.opened import LoadOptions, Opened, open_model
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing

# Bytes of a block: it fits in a CPU's cache; elsewhere it is large enough to pay for the transfer.
BLOCK = {"cpu": 8 << 20}
LARGE_BLOCK = 64 << 20
# While one block is compared, another is read.
THREADS = 2


def search(
    out: str | os.PathLike[str],
    model: CLIP | str | os.PathLike[str] | None,
    query: str | Image.Image | os.PathLike[str],
    k: int = 10,
    *,
    fit: Fit | None = None,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
    approximate: bool = False,
) -> list[dict[str, Any]]:
    """Finds the rows of an embedding job whose embeddings are nearest to a query's.

    Args:
        out: the job's folder.
        model: the job's model, or what `clip_jax.load` takes; None to load the one that the job
            had, if that was given by name or path.
        query: a text (`str`); or a picture, as an image or as an `os.PathLike` path.
        k: how many rows.
        fit: how a picture becomes a square, as for `clip_jax.Preprocess`; by default as the
            pictures of the job did, whose other options it always has.
        activation: of a model that is a bare file, as for `clip_jax.load`; the job's by default.
        num_heads: likewise.
        preprocessing: whose pixels and ids the query has; the job's by default.
        image_size: another size of the images, as for `clip_jax.load`; the job's by default.
        position_resize: how positions are resized for it, likewise.
        drop_remainder: whether it may be no multiple of the patches' size, likewise.
        approximate: whether to look only among the candidates that the index names, which
            `build_index` has left. Their scores are exact; some of the nearest rows may be missing.

    Returns:
        Dicts of `key`, `score` (the cosine), `path` (None for texts), and `caption` if the rows
        have one; best first, ties in the order of the input.

    Raises:
        ValueError: there are no embeddings; they are of another model; `k` is less than 1; the
            picture can't be read; a text is the path of a picture. Or the index is damaged, or of
            other parts than there are now.
        TypeError: `k` is no integer.
        FileNotFoundError: there is no index.
        ModuleNotFoundError: faiss, which searches the index, is not installed.
        OSError: the output can't be read.

    Warns:
        Incomplete: parts are missing or damaged; the message says how many rows are left out.
        UserWarning: a text looks like the path of a picture.
    """
    if operator.index(k) < 1:
        raise ValueError(f"k must be at least 1. Got {k}.")
    if isinstance(query, str):
        _check_is_no_path(query)
    elif not isinstance(query, Image.Image | os.PathLike):
        raise TypeError(f"query must be a text, an image or a path. Got {type(query).__name__}.")
    out = folder(out)
    job = finished_job(out)
    options = LoadOptions(
        activation=activation,
        num_heads=num_heads,
        preprocessing=preprocessing or "openai",
        image_size=image_size,
        position_resize=position_resize,
        drop_remainder=drop_remainder,
    )
    # Before the model is loaded, which takes longer than to find that the index is of no use.
    index = open_index(out) if approximate else None
    opened = model_of(out, job, model, options)
    check_given(out, job, model, "tokenizer" if isinstance(query, str) else "preprocessing")
    rotates = bool(job["identity"].get("exif_transpose"))
    embedding = embed_query(opened, query, picture_options(job, fit), rotates=rotates)
    if index is None:
        index = Index(out, job)
        scores, rows = _best_of_all(index, embedding, k)
    else:
        found, numbers = index.search(embedding[None], k)
        scores, rows = found[0].tolist(), index.rows(numbers[0].tolist())
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


def _best_of_all(
    index: Index, embedding: Float[np.ndarray, " d"], k: int
) -> tuple[list[float], list[dict[str, Any]]]:
    """Returns the scores and columns of the nearest rows; leaves out parts that are damaged."""
    while True:
        try:
            scores, numbers = best_rows(index, embedding, k)
            return scores, index.rows(numbers)
        except Damaged as error:
            index.leave_out(error.parts)


def _check_is_no_path(query: str) -> None:
    """Checks that a text isn't blank, nor a path, whose name would be searched for.

    Raises:
        ValueError: it is blank, or there is such a picture, or such a folder by a path.

    Warns:
        UserWarning: it looks like a path, but there is no such file.
    """
    if not query.strip():
        raise ValueError("the text to search for is blank: give some words.")
    if os.sep in query and os.path.isdir(query):
        raise ValueError(f"{query} is a folder, expected a text or one picture's file.")
    way = "for the picture, give --image on the command line, a pathlib.Path in Python"
    if is_picture_file(query):
        raise ValueError(f"{query} is a picture's file, expected a text: {way}.")
    if os.path.splitext(query)[1].lower() in Image.registered_extensions():
        warnings.warn(f"{query!r} is searched for as a text; {way}", stacklevel=3)


def embed_query(
    opened: Opened,
    query: str | Image.Image | os.PathLike[str],
    pictures: PictureOptions = PictureOptions(),  # noqa: B008 - frozen
    *,
    rotates: bool = False,
) -> Float[np.ndarray, " d"]:
    """Returns the normalised embedding of a text or a picture.

    Args:
        opened: the model.
        query: a text; or a picture, or its path.
        pictures: how a picture becomes pixels.
        rotates: whether a picture is rotated as its EXIF data say.
    """
    model = opened.model
    if isinstance(query, str):
        opened.check_strings()
        return np.asarray(normalize(model.encode_text(opened.tokens(query)))[0], np.float32)
    preprocess = pictures.applied_to(opened.preprocess)
    is_open = isinstance(query, Image.Image)
    image = query if is_open else open_image(query, preprocess=preprocess)
    if rotates:
        image = ImageOps.exif_transpose(image)
    pixels = preprocess.pixels(image)
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


def picture_options(job: Mapping[str, Any], fit: Fit | None = None) -> PictureOptions:
    """Returns the options with which a job has made pixels of its pictures."""
    names = [field.name for field in dataclasses.fields(PictureOptions)]
    noted = {name: job["identity"][name] for name in names if name in job["identity"]}
    pictures = PictureOptions(**noted)
    return dataclasses.replace(pictures, fit=fit) if fit else pictures


def check_given(out: str, job: Mapping[str, Any], model: Any, own: str) -> None:
    """Checks that a model has what belongs to it: `own`, "tokenizer" or "preprocessing".

    Raises:
        ValueError: it is given as an object, and the job had that from the model's folder.
    """
    if isinstance(model, CLIP) and job["identity"].get(own):
        raise ValueError(
            f"{out} was embedded with the {own} of the model's folder: give the model by its path"
        )


def model_of(
    out: str,
    job: dict[str, Any],
    model: CLIP | str | os.PathLike[str] | None,
    options: LoadOptions,
) -> Opened:
    """Returns the model of a job, loaded as the job did where nothing else is told.

    Args:
        out: the job's folder.
        job: the content of its `job.json`.
        model: the model; what `clip_jax.load` takes; or None for the one that the job names.
        options: how to load it; where it says nothing, as the job did.

    Raises:
        ValueError: the job names none, or it is another model.
    """
    model = job["model"] if model is None else model
    if model is None:
        raise ValueError(f"{out} doesn't know its model by name or path: give the model")
    if not isinstance(model, CLIP):
        options = job_options(job, model, options)
    opened = open_model(model, options, load)
    check_model(out, job, opened.model)
    return opened
