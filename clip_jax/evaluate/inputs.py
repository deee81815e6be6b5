"""What an evaluation runs on: the model, and the embedded images with their labels or captions.

A source is either the output folder of an embedding job, which is read, or pictures, which are
embedded here.
"""

import os
from collections.abc import Mapping
from typing import Any

from clip_jax.catalog import available_models
from clip_jax.embed import check_model, read_job
from clip_jax.evaluate.captions import Captioned, embed_captioned, read_captioned
from clip_jax.evaluate.data import Features, Images, embed_images, read_images
from clip_jax.nn import CLIP
from clip_jax.progress import announce
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.sources.patterns import expand
from clip_jax.storage import storage
from clip_jax.weights import load
from clip_jax.weights.loader import Resizing
from clip_jax.weights.tokenizers import string_tokenizer

Model = CLIP | str | os.PathLike[str]

DEFAULT_MODEL = "ViT-B/32"


def embedding_job(source: str) -> dict[str, Any] | None:
    """Returns the description of the embedding job in that folder; None if there is none."""
    return read_job(source) if storage(source).is_folder(source) else None


def find_model(
    source: str,
    model: Model | None,
    progress: bool,
    load_options: Mapping[str, Any] | None = None,
) -> CLIP:
    """Returns the model to evaluate: the given one, that of the embedding job, or ViT-B/32.

    Args:
        source: an embedding job's output, or pictures.
        model: the model, or its name or path.
        progress: whether to show progress on standard error.
        load_options: as for `clip_jax.embed.embed`; by default those of the embedding job.

    Raises:
        ValueError: the source is an embedding job of another model, or of a model that is not known
            by name or has moved.
        OSError: there is no such source.
    """
    job = embedding_job(source)
    if job is None and not storage(source).is_folder(source):
        expand(source)  # raises if there are no such files, before a model is downloaded in vain
    if not isinstance(model, CLIP):
        name = _model_name(source, job) if model is None else model
        options = (job or {}).get("load_options", {}) if load_options is None else load_options
        Resizing.check_options(options)
        announce("loading the model", progress)
        model = load(name, **options)[0]
    if job:
        check_model(source, job, model)
    return model


def find_tokenizer(source: str, model: Model | None, found: CLIP) -> AnyTokenizer:
    """Returns the tokenizer of the model that `find_model` has found for the same arguments.

    Raises:
        ValueError: it isn't CLIP's, and not known or not at hand.
    """
    if isinstance(model, CLIP):
        return string_tokenizer(found.config.text)
    name = _model_name(source, embedding_job(source)) if model is None else model
    return string_tokenizer(found.config.text, name)


def find_images(
    source: str,
    model: CLIP | None,
    *,
    label_column: str | None,
    features: Features = "after",
    batch_size: int | None,
    progress: bool,
) -> Images:
    """Reads labelled embeddings, or embeds labelled pictures; raises as the two functions do.

    Args:
        source: an embedding job's output, or pictures.
        model: may be None for embeddings, which are read as they are.
        label_column: as for `embed_images`; "label" for embeddings if None.
        features: as for `embed_images`; embeddings are always after the projection.
        batch_size: as for `embed_images`.
        progress: whether to show progress on standard error.
    """
    if embedding_job(source):
        return read_images(source, label_column or "label")
    assert model is not None, "pictures need a model"
    announce("embedding the pictures", progress)
    return embed_images(
        source,
        model,
        label_column=label_column,
        features=features,
        batch_size=batch_size,
        progress=progress,
    )


def find_captioned(
    source: str,
    model: Model | None,
    *,
    load_options: Mapping[str, Any] | None = None,
    batch_size: int | None,
    progress: bool,
) -> Captioned:
    """Reads embeddings of images and captions, or embeds both; raises as the two functions do.

    Args:
        source: an embedding job's output, or pairs.
        model: as for `find_model`; for embeddings it is only compared with theirs.
        load_options: as for `find_model`.
        batch_size: as for `embed_captioned`.
        progress: whether to show progress on standard error.
    """
    is_embedded = embedding_job(source) is not None
    if is_embedded and model is None:  # embeddings alone need no model
        return read_captioned(source)
    found = find_model(source, model, progress, load_options)
    if is_embedded:
        return read_captioned(source)
    tokenizer = find_tokenizer(source, model, found)
    return embed_captioned(
        source, found, tokenizer=tokenizer, batch_size=batch_size, progress=progress
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
