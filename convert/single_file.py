"""Reads the text towers inside a single file of Stable Diffusion, without reading the rest.

Such a file holds a whole pipeline and no configuration. Which encoder it has is known by the names
and the width: those of Stable Diffusion 1 and 2, XL and its refiner are the same in every file. Of
other widths the caller has to say the heads and the activation.
"""

import functools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config import Activation, TextConfig
from clip_jax.convert.huggingface import tree_of
from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.rules import OPEN_CLIP
from clip_jax.convert.table import count_blocks, to_tree
from clip_jax.errors import CheckpointError
from clip_jax.shapes import TEXT_BLOCKS, check_num_blocks, text_shapes

# Diffusers' names of a pipeline's text towers, and the beginnings of their arrays' names: with
# transformers' names after it, and with OpenCLIP's.
FIRST, SECOND = "text_encoder", "text_encoder_2"
HUGGING_FACE = {
    "cond_stage_model.transformer.": FIRST,
    "conditioner.embedders.0.transformer.": FIRST,
}
OPEN_CLIP_NAMES = {
    "cond_stage_model.model.": FIRST,
    "conditioner.embedders.1.model.": SECOND,
    "conditioner.embedders.0.model.": SECOND,  # the refiner's only one
}
# Stable Diffusion 2 uses its tower without the last block and the projection, and so do diffusers'
# folders of it.
CUT = "cond_stage_model.model."
# Heads and activation by the width: CLIP ViT-L/14's, OpenCLIP ViT-H-14's and ViT-bigG-14's.
KNOWN: dict[int, tuple[int, Activation]] = {
    768: (12, "quick_gelu"),
    1024: (16, "gelu"),
    1280: (20, "gelu"),
}


def text_towers(names: Collection[str]) -> dict[str, str]:
    """Returns the beginnings of the arrays' names of a pipeline's text towers, by part.

    Args:
        names: the names of a file's arrays.
    """
    prefixes = {**HUGGING_FACE, **OPEN_CLIP_NAMES}
    return {
        prefixes[prefix]: prefix
        for prefix in prefixes
        if any(name.startswith(prefix) for name in names)
    }


def read_single_file(
    path: str | os.PathLike[str],
    part: str | None = None,
    *,
    activation: Activation | None = None,
    num_heads: int | None = None,
) -> tuple[TextConfig, int | None, int, dict[str, Any]] | None:
    """Reads a text tower of a file that holds a pipeline of Stable Diffusion.

    Args:
        path: the file.
        part: "text_encoder" or "text_encoder_2", where there are both.
        activation: the GELU of the tower; needed for widths other than the known ones.
        num_heads: its attention heads, likewise.

    Returns:
        The configuration; the dimension of the joint space, None without a projection; the id that
        the pipeline pads with; and the tree, of views where possible. None if the file holds no
        pipeline.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it can't be read, has no such part or several, or the arrays don't fit.
    """
    arrays = read_checkpoint(path)
    found = text_towers(arrays)
    if not found:
        return None
    if part is None and len(found) > 1:
        raise CheckpointError(
            f'{path} holds two text towers: give subfolder="{FIRST}" or "{SECOND}"'
        )
    prefix = found.get(part or next(iter(found)))
    if prefix is None:
        raise CheckpointError(f"{path} has no {part}, expected {' or '.join(found)}")
    own = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    try:
        return _tower(own, prefix, activation, num_heads)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path)}: of {prefix}*: {error}") from None


def _tower(
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    activation: Activation | None,
    num_heads: int | None,
) -> tuple[TextConfig, int | None, int, dict[str, Any]]:
    is_huggingface = prefix in HUGGING_FACE
    pad_id = 49407 if is_huggingface else 0
    if is_huggingface:
        names = ("text_model.embeddings.token_embedding.weight", "text_projection.weight")
        positions, blocks = "text_model.embeddings.position_embedding.weight", "text_model.encoder."
        blocks += "layers."
    else:
        names, positions = ("token_embedding.weight", "text_projection"), "positional_embedding"
        blocks = "transformer.resblocks."
        arrays = {n: a for n, a in arrays.items() if n not in ("logit_scale", "attn_mask")}
    num_layers = count_blocks(arrays, blocks)
    if prefix == CUT and num_layers > 1:
        num_layers -= 1
        last = f"{blocks}{num_layers}."
        arrays = {n: a for n, a in arrays.items() if n != names[1] and not n.startswith(last)}
    (vocab_size, width), (context_length, _) = (_shape(arrays, n) for n in (names[0], positions))
    known_heads, known_activation = KNOWN.get(width, (None, None))
    heads, gelu = num_heads or known_heads, activation or known_activation
    if heads is None or gelu is None:
        raise CheckpointError(
            f"the tower has the width {width}, expected one of {', '.join(map(str, KNOWN))}, whose "
            f"heads and activation are known: say them with num_heads= and activation=, or give "
            f"the folder text_encoder in diffusers' layout"
        )
    projection = arrays.get(names[1])
    embed_dim = None if projection is None else _dimension(projection, is_huggingface)
    try:
        check_num_blocks(num_layers, len(arrays))
        config = TextConfig(
            width,
            num_layers,
            heads,
            context_length,
            vocab_size,
            activation=gelu,
            eos_id=2,  # as the configurations of all these encoders say: the first largest id
            has_projection=embed_dim is not None,
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    shapes = functools.partial(text_shapes, config, embed_dim)
    if is_huggingface:
        return config, embed_dim, pad_id, tree_of(shapes, arrays, {TEXT_BLOCKS: num_layers})
    return config, embed_dim, pad_id, to_tree(shapes(), arrays, OPEN_CLIP)


def _shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, int]:
    if name not in arrays or arrays[name].ndim != 2:
        raise CheckpointError(f"- {name}: missing, or not a matrix")
    rows, columns = arrays[name].shape
    return rows, columns


def _dimension(projection: np.ndarray, is_huggingface: bool) -> int:
    return projection.shape[0 if is_huggingface else -1] if projection.ndim else 1
