"""Reads one tower from a folder of Hugging Face's transformers, without reading the other."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config import TextConfig, ViTConfig
from clip_jax.convert import huggingface_siglip
from clip_jax.convert.checks import named
from clip_jax.convert.families import (
    CLIP,
    SIGLIP,
    SIGLIP_TEXT,
    SIGLIP_VISION,
    TEXT,
    VISION,
)
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.folder import read_folder
from clip_jax.convert.huggingface import read_config, tree_of
from clip_jax.convert.huggingface_config import activation, text_config, vision_config
from clip_jax.convert.huggingface_pixels import read_pixels
from clip_jax.errors import CheckpointError
from clip_jax.pixel_config import PixelConfig
from clip_jax.shapes import TEXT_BLOCKS, VISION_BLOCKS, text_shapes, vision_shapes

# Each tower's kind in SigLIP, and the kind of the whole models.
SIGLIPS = {TEXT: SIGLIP_TEXT, VISION: SIGLIP_VISION}
WHOLE = (CLIP, SIGLIP)
# The names of each tower's arrays, and one that a tower saved without its prefix has.
OWN = {
    TEXT: ("text_model.", "text_projection.", "embeddings.token_embedding.weight"),
    VISION: ("vision_model.", "visual_projection.", "embeddings.patch_embedding.weight"),
}


def read_text_tower(
    folder: str | os.PathLike[str],
) -> tuple[TextConfig, int | None, dict[str, Any]]:
    """Reads the text tower of a folder of a whole model, or of a text tower alone.

    As in transformers, the text classes read `text_config` alone, whatever else an old file says.

    Returns:
        The configuration, with its activation; the dimension of the joint space, None without a
        projection; and the parameter tree, with views of the mapped file where possible.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it can't be read, holds another kind of encoder, or doesn't fit; lists all
            problems.
    """
    folder = Path(folder)
    fields, problems, is_siglip = _fields(folder, TEXT, "text_config")
    if is_siglip:
        gelu = activation(fields, huggingface_siglip.BLOCKS["hidden_act"])
        config = huggingface_siglip.text_config(fields, gelu)
    else:
        config = text_config(fields, activation(fields))
    try:
        raise_problems(problems)
        assert config is not None
        arrays, embed_dim = _arrays(folder, TEXT)
        if is_siglip:
            embed_dim = huggingface_siglip.projection_size(fields)
        elif embed_dim is None:
            config = dataclasses.replace(config, has_projection=False)
        shapes = functools.partial(text_shapes, config, embed_dim)
        return config, embed_dim, tree_of(shapes, arrays, {TEXT_BLOCKS: config.num_layers})
    except CheckpointError as error:
        raise named(folder, error) from None


def read_vision_tower(
    folder: str | os.PathLike[str],
) -> tuple[ViTConfig, int | None, PixelConfig, dict[str, Any]]:
    """Reads the vision tower of a folder, as `read_text_tower`; also how pixels are made."""
    folder = Path(folder)
    fields, problems, is_siglip = _fields(folder, VISION, "vision_config")
    if is_siglip:
        gelu = activation(fields, huggingface_siglip.BLOCKS["hidden_act"])
        config = huggingface_siglip.vision_config(fields, gelu)
    else:
        config = vision_config(fields, activation(fields))
    default = huggingface_siglip.PIXELS if is_siglip else None
    try:
        raise_problems(problems)
        assert config is not None
        arrays, embed_dim = _arrays(folder, VISION)
        if is_siglip:
            embed_dim = config.width
        shapes = functools.partial(vision_shapes, config, embed_dim)
        tree = tree_of(shapes, arrays, {VISION_BLOCKS: config.num_layers})
        return config, embed_dim, read_pixels(folder, default), tree
    except CheckpointError as error:
        raise named(folder, error) from None


def _fields(folder: Path, kind: str, inner: str) -> tuple[Fields, list[str], bool]:
    """Returns a tower's configuration, where problems with it go, and whether it is SigLIP's."""
    document = read_config(folder)
    kinds = (kind, SIGLIPS[kind])
    if (found := document["model_type"]) not in (*WHOLE, *kinds):
        raise CheckpointError(
            f"{folder} holds a {found}, expected {' or '.join(kinds)}, or a whole model, "
            f"{' or '.join(WHOLE)}"
        )
    problems: list[str] = []
    root = Fields(document, "config.json", problems)
    fields = root.inner(inner, {}) if found in WHOLE else root
    return fields, problems, found in (SIGLIP, SIGLIPS[kind])


def _arrays(folder: Path, kind: str) -> tuple[Mapping[str, np.ndarray], int | None]:
    """Returns a tower's arrays by their names with prefix, and the size of its projection."""
    arrays = read_folder(folder, "huggingface")
    prefix, projection, bare = OWN[kind]
    if bare in arrays:  # as saved by transformers 5.6 and later
        arrays = {
            name if name.startswith((prefix, projection)) else f"{prefix}{name}": array
            for name, array in arrays.items()
        }
    other, their_projection, _ = OWN[VISION if kind == TEXT else TEXT]
    not_ours = (other, their_projection, "logit_scale", "logit_bias")
    arrays = {name: array for name, array in arrays.items() if not name.startswith(not_ours)}
    matrix = arrays.get(f"{projection}weight")
    return arrays, None if matrix is None else matrix.shape[0] if matrix.ndim else 1
