"""What an evaluation runs on: the model, and the embedded images with their labels or captions.

A source is either the output folder of an embedding job, which is read, or pictures, which are
embedded here.
"""

import os
from collections.abc import Sequence
from typing import Any

from clip_jax.catalog import available_models
from clip_jax.embed import check_model, read_job
from clip_jax.embed.identity import job_options
from clip_jax.evaluate.captions import Captioned, embed_captioned, read_captioned
from clip_jax.evaluate.data import Features, Images, embed_images, read_images
from clip_jax.nn import CLIP
from clip_jax.picture_options import PictureOptions
from clip_jax.progress import announce
from clip_jax.sources import Columns
from clip_jax.sources.patterns import expand
from clip_jax.storage import storage
from clip_jax.weights import load
from clip_jax.weights.opened import DEFAULTS, LoadOptions, Model, Opened, open_model

DEFAULT_MODEL = "ViT-B/32"


def embedding_job(source: str) -> dict[str, Any] | None:
    """Returns the description of the embedding job in that folder; None if there is none."""
    return read_job(source) if storage(source).is_folder(source) else None


def find_model(
    source: str, model: Model | None, progress: bool, options: LoadOptions = DEFAULTS
) -> Opened:
    """Returns the model to evaluate: the given one, that of the embedding job, or ViT-B/32.

    One by name or path is loaded as `options` say, else as the embedding job loaded it.

    Raises:
        ValueError: the source is an embedding job of another model, or of a model that is not known
            by name or has moved.
        OSError: there is no such source.
    """
    job = embedding_job(source)
    if job is None and not storage(source).is_folder(source):
        expand(source)  # raises if there are no such files, before a model is downloaded in vain
    if isinstance(model, CLIP):
        opened = open_model(model, options)
    else:
        name = _model_name(source, job) if model is None else model
        announce("loading the model", progress)
        opened = open_model(name, job_options(job or {}, name, options), load)
    if job:
        check_model(source, job, opened.model)
    return opened


def find_images(
    source: str,
    opened: Opened | None,
    *,
    label_column: str | None,
    image_column: str = Columns.image,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    features: Features = "after",
    batch_size: int | None,
    progress: bool,
) -> Images:
    """Reads labelled embeddings, or embeds labelled pictures; raises as the two functions do.

    Args:
        source: an embedding job's output, or pictures.
        opened: the model; may be None for embeddings, which are read as they are.
        label_column: as for `embed_images`; "label" for embeddings if None.
        image_column: as for `embed_images`.
        where: as for `embed_images`; embeddings have been chosen as they were made.
        pictures: as for `embed_images`; embeddings are read as they are.
        features: as for `embed_images`; embeddings are always after the projection.
        batch_size: as for `embed_images`.
        progress: whether to show progress on standard error.
    """
    if embedding_job(source):
        _check_no_choice(source, where)
        return read_images(source, label_column or "label")
    assert opened is not None, "pictures need a model"
    announce("embedding the pictures", progress)
    return embed_images(
        source,
        opened.model,
        preprocess=opened.preprocess,
        label_column=label_column,
        image_column=image_column,
        where=where,
        pictures=pictures,
        features=features,
        batch_size=batch_size,
        progress=progress,
    )


def find_captioned(
    source: str,
    opened: Opened | None,
    *,
    columns: Columns | None = None,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    batch_size: int | None,
    progress: bool,
) -> Captioned:
    """Reads embeddings of images and captions, or embeds both; raises as the two functions do.

    Args:
        source: an embedding job's output, or pairs.
        opened: may be None for embeddings, which are read as they are.
        columns: as for `embed_captioned`.
        where: as for `embed_captioned`; embeddings have been chosen as they were made.
        pictures: as for `embed_captioned`.
        batch_size: as for `embed_captioned`.
        progress: whether to show progress on standard error.
    """
    if embedding_job(source):
        _check_no_choice(source, where)
        return read_captioned(source)
    assert opened is not None, "pairs need a model"
    announce("embedding the pictures", progress)
    return embed_captioned(
        source,
        opened,
        columns=columns,
        where=where,
        pictures=pictures,
        batch_size=batch_size,
        progress=progress,
    )


def name_of(job: dict[str, Any] | None, model: Model | None) -> Any:
    """Returns the name or path of the model that `find_model` finds; None for an object."""
    if isinstance(model, CLIP):
        return None
    if model is not None:
        return model
    return job["model"] if job else DEFAULT_MODEL


def _check_no_choice(source: str, where: str | Sequence[str] | None) -> None:
    if where:
        raise ValueError(
            f"{source} is the output of an embedding job: rows are chosen by where as they are "
            "embedded, or from pictures"
        )


def _model_name(source: str, job: dict[str, Any] | None) -> str:
    if job is None:
        return DEFAULT_MODEL
    name = job["model"]
    if name is None:
        raise ValueError(f"{source} doesn't know its model by name or path: give --model")
    if name not in available_models() and not os.path.exists(name):
        raise ValueError(f"the model of {source}, {name}, is not there any more: give --model")
    return name
