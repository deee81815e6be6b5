"""Reads and writes folders of Hugging Face's transformers that hold a CLIP or SigLIP model."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config import CLIPConfig, SigLIPConfig
from clip_jax.convert import huggingface_pixels, huggingface_siglip, parts
from clip_jax.convert.checks import named
from clip_jax.convert.families import (
    CLIP,
    CONFIG,
    FOREIGN_TOWER,
    NAFLEX,
    SIGLIP,
    check_model_type,
)
from clip_jax.convert.folder import read_folder
from clip_jax.convert.folder_writer import write_folder
from clip_jax.convert.huggingface_config import from_document, to_document
from clip_jax.convert.huggingface_pixels import PREPROCESSOR, read_pixels
from clip_jax.convert.huggingface_tokenizer import siglip_tokenizer_files, tokenizer_files
from clip_jax.convert.json_file import read_json
from clip_jax.convert.long_clip import with_one_table
from clip_jax.convert.parts import model_arrays
from clip_jax.convert.rules import HUGGING_FACE
from clip_jax.convert.table import check_arrays, count_blocks, from_tree, to_tree
from clip_jax.errors import CheckpointError
from clip_jax.sentence_piece import AnyTokenizer, SentencePieceTokenizer, check_belongs
from clip_jax.shapes import blocks, check_num_blocks, parameter_shapes

WEIGHTS = "model.safetensors"
PATCHES = "vision_model.embeddings.patch_embedding.weight"
SCALARS = ("logit_scale", "logit_bias")
POSITION_IDS = ".embeddings.position_ids"  # 0, 1, 2, ...; stored by old versions
LAYERS = {
    "transformer/resblocks": ("text_config", "text_model.encoder.layers."),
    "visual/transformer/resblocks": ("vision_config", "vision_model.encoder.layers."),
}


def from_huggingface(folder: str | os.PathLike[str]) -> tuple[CLIPConfig, dict[str, Any]]:
    """Reads a folder of a `CLIPModel` or `SiglipModel` of Hugging Face's transformers.

    Args:
        folder: a folder with `config.json` and weights: safetensors, `.bin` or Flax's msgpack, in
            one file or in shards.

    Returns:
        The configuration, and nested dicts of arrays in our layouts with their dtypes unchanged:
        views of the mapped file, except for queries, keys and values, which are joined.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it can't be read, isn't supported, or doesn't fit its configuration; lists
            all problems.
    """
    folder = Path(folder)
    config = folder_config(folder)
    arrays = read_folder(folder, "huggingface")
    try:
        return config, from_arrays(config, arrays)
    except CheckpointError as error:
        raise named(folder, error) from None


def folder_config(folder: Path) -> CLIPConfig:
    """Reads the configuration of a folder of a `CLIPModel` or `SiglipModel`.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is missing, of another kind of model, or not supported; lists all
            problems.
    """
    document = read_config(folder)
    if (kind := document["model_type"]) not in (CLIP, SIGLIP):
        raise CheckpointError(f"{folder} {FOREIGN_TOWER.format(kind=kind)}")
    try:
        if kind == SIGLIP:
            pixels = read_pixels(folder, huggingface_siglip.default_pixels(document))
            return huggingface_siglip.from_document(document, pixels)
        return from_document(document, read_pixels(folder))
    except CheckpointError as error:
        raise named(folder, error) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the `config.json` of a folder of transformers.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: there is no such file, or it is of another kind of model.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    try:
        document = read_json(folder / CONFIG)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {CONFIG}, which describes the model: download or copy it too"
        ) from None
    check_model_type(folder, document.get("model_type"))
    return document


def from_arrays(config: CLIPConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the arrays of a `CLIPModel` or `SiglipModel` by their names to our tree.

    Raises:
        CheckpointError: they don't fit the configuration; lists all problems.
    """
    check_arrays(arrays)
    arrays = model_arrays(arrays, parts.HUGGING_FACE)
    if isinstance(config, SigLIPConfig):  # whose scalars have an axis there
        arrays = {name: _scalar(name, array) for name, array in arrays.items()}
    return tree_of(lambda: parameter_shapes(config), arrays, blocks(config))


def tree_of(
    targets: Callable[[], Mapping[str, tuple[int, ...]]],
    arrays: Mapping[str, np.ndarray],
    num_blocks: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the tree of arrays by transformers' names.

    Args:
        targets: returns the shapes of the tree's arrays.
        arrays: the arrays.
        num_blocks: how many blocks the configuration says, by the path of the tower's.

    Raises:
        CheckpointError: they don't fit; lists all problems.
    """
    try:
        check_num_blocks(sum(num_blocks.values()), len(arrays))
    except ValueError as error:
        raise CheckpointError(
            f"{CONFIG} does not fit the arrays: {error}. Take both from the same source"
        ) from None
    notes = [
        f"! {name}: expected 0, 1, 2 and so on"
        for name, array in arrays.items()
        if name.endswith(POSITION_IDS) and not _counts(array)
    ]
    arrays = {name: array for name, array in arrays.items() if not name.endswith(POSITION_IDS)}
    arrays = with_one_table(arrays)
    if PATCHES in arrays and arrays[PATCHES].ndim == 2:
        raise CheckpointError(NAFLEX)
    for path, count in num_blocks.items():
        tower, prefix = LAYERS[path]
        if (there := count_blocks(arrays, prefix)) != count:
            notes.append(
                f"! {tower}.num_hidden_layers: {CONFIG} says {count}, the arrays have {there}"
            )
    return to_tree(targets(), arrays, HUGGING_FACE, notes, CONFIG)


def to_huggingface(
    config: CLIPConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    tokenizer: AnyTokenizer | None = None,
    replace: bool = False,
) -> None:
    """Writes a folder that transformers loads as `CLIPModel` or `SiglipModel`.

    The write is atomic. The image processor's settings are written too. The tokenizer's files are
    CLIP's, or those of `tokenizer`; for another model whose ids aren't CLIP's there are none.

    Args:
        config: the architecture that the parameters belong to.
        params: nested dicts of NumPy or JAX arrays, whose dtypes are kept.
        folder: the folder, which is created with its parents.
        tokenizer: a SigLIP model's own, or one with tokens added to CLIP's, as
            `clip_jax.load_tokenizer` returns it.
        replace: whether to replace such a folder that exists.

    Raises:
        TypeError: `tokenizer` is no tokenizer.
        ValueError: `tokenizer` is another model's.
        CheckpointError: Hugging Face's classes can't express the model or the tokenizer, or the
            parameters don't fit; lists all reasons. Nothing is written then.
        FileExistsError: the folder exists.
        OSError: it can't be written; nothing is left behind.
    """
    is_siglip = isinstance(config, SigLIPConfig)
    if is_siglip:
        document = huggingface_siglip.to_document(config)
        pixels = huggingface_pixels.siglip_to_document(config)
    else:
        document = to_document(config)
        pixels = huggingface_pixels.to_document(config)
    arrays = from_tree(config, params, HUGGING_FACE)
    if is_siglip:  # whose scalars have an axis there
        arrays |= {name: arrays[name].reshape(1) for name in SCALARS}
    dtypes = {array.dtype.name for array in arrays.values()}
    # Without it transformers 5 would take that of the first array for all of them.
    document["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    check_belongs(tokenizer, config.text.vocab_size)
    is_own = isinstance(tokenizer, SentencePieceTokenizer)
    own = siglip_tokenizer_files(tokenizer) if is_own else tokenizer_files(config.text, tokenizer)
    files = {CONFIG: _json(document), PREPROCESSOR: _json(pixels), **own}
    write_folder(folder, files, WEIGHTS, arrays, replace=replace)


def _scalar(name: str, array: np.ndarray) -> np.ndarray:
    return array.reshape(()) if name in SCALARS and array.shape == (1,) else array


def _counts(array: np.ndarray) -> bool:
    flat = np.asarray(array).reshape(-1)
    return flat.dtype.kind in "iu" and bool((flat == np.arange(len(flat))).all())


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
