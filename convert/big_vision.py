"""Reads SigLIP and SigLIP 2 as big_vision, where they were trained, has published them: `.npz`."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.config import SigLIPConfig, TextConfig, ViTConfig
from clip_jax.convert.families import NAFLEX
from clip_jax.convert.npz import read_npz
from clip_jax.convert.rules import BIG_VISION
from clip_jax.convert.table import count_blocks, to_tree
from clip_jax.errors import CheckpointError
from clip_jax.pixel_config import HALF, PixelConfig
from clip_jax.shapes import check_blocks, parameter_shapes

IMAGE, TEXT = "img/Transformer/", "txt/Encoder_0/"
KERNEL, POSITIONS = "img/embedding/kernel", "img/pos_embedding"
PROBE, HEAD = "img/MAPHead_0/probe", "txt/head/kernel"
EMBEDDING, TEXT_POSITIONS = "txt/Embed_0/embedding", "txt/pos_embedding"
# Where old files have a part of the text's positions.
MORE_POSITIONS = "txt/Encoder_0/pos_embedding"
# Where a file may have its parameters, in the order of looking.
ROOTS = ("params/", "", "opt/target/")
# Two of a block's arrays: their shapes tell the heads, and the MLPs' width.
QUERY, HIDDEN = "MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel"
ATTENTION = re.compile(r".*/MultiHeadDotProductAttention_0/(query|key|value|out)/(kernel|bias)$")
GEMMA_VOCAB_SIZE = 256000  # of SigLIP 2, whose pixels are bilinear
EPSILON = 1e-6


def from_big_vision(
    path: str | os.PathLike[str], *, image_size: int | None = None
) -> tuple[SigLIPConfig, dict[str, Any]]:
    """Reads a SigLIP or SigLIP 2 checkpoint of big_vision.

    Args:
        path: the `.npz` file, or its address, such as gs://big_vision/siglip/...; published
            weights, or a checkpoint of its trainer.
        image_size: the side of the images, if it isn't a multiple of the patches, which only the
            published files' names say: a number in the name that gives as many patches is taken.

    Returns:
        The configuration, read off the shapes; and nested dicts of arrays in our layouts with their
        dtypes unchanged.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it can't be read, is another kind of model, or its arrays don't fit each
            other; lists all problems.
    """
    path = os.fspath(path)
    found = read_npz(path, _parameters)
    root = _root(list(found))
    arrays = {name.removeprefix(root): array for name, array in found.items()}
    try:
        arrays = _unstacked(arrays)
        config = _config(arrays, path, image_size)
        check_blocks(config, len(arrays))
        if (more := arrays.pop(MORE_POSITIONS, None)) is not None:
            arrays[TEXT_POSITIONS] = arrays[TEXT_POSITIONS] + more
        arrays = {name: _as_matrix(name, array) for name, array in arrays.items()}
        return config, to_tree(parameter_shapes(config), arrays, BIG_VISION)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _root(names: list[str]) -> str:
    """Returns what the names of a model's parameters begin with."""
    for root in ROOTS:
        if f"{root}{KERNEL}" in names:
            return root
    raise CheckpointError(
        f"has no array {KERNEL}, expected a SigLIP model of big_vision: check that it is the right "
        f"file"
    )


def _parameters(names: list[str]) -> list[str]:
    root = _root(names)
    return [name for name in names if name.startswith((f"{root}img/", f"{root}txt/"))] + [
        f"{root}{name}" for name in ("t", "b") if f"{root}{name}" in names
    ]


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays of which each block has its own, from those with an axis of blocks."""
    result = {}
    for name, array in arrays.items():
        before, stack, after = name.partition("/encoderblock/")
        if not stack:
            result[name] = array
        elif not array.ndim:
            raise CheckpointError(f"! {name}: expected an axis of blocks. Got a number")
        else:
            result |= {f"{before}/encoderblock_{i}/{after}": row for i, row in enumerate(array)}
    return result


def _config(arrays: Mapping[str, np.ndarray], path: str, image_size: int | None) -> SigLIPConfig:
    """Returns the configuration that the shapes tell."""
    _check_shapes(arrays)
    patch_size, _, _, width = arrays[KERNEL].shape
    vocab_size, text_width = arrays[EMBEDDING].shape
    side = math.isqrt(arrays[POSITIONS].shape[1])
    vision = ViTConfig(
        image_size or _size_by_name(path, patch_size, side),
        patch_size,
        width,
        count_blocks(arrays, f"{IMAGE}encoderblock_"),
        has_ln_pre=False,
        pooling="attention",
        **_block_options(arrays, IMAGE, width),
    )
    text = TextConfig(
        text_width,
        count_blocks(arrays, f"{TEXT}encoderblock_"),
        context_length=arrays[TEXT_POSITIONS].shape[1],
        vocab_size=vocab_size,
        is_causal=False,
        pooling="last",
        has_projection=HEAD in arrays,
        has_projection_bias=HEAD in arrays,
        **_block_options(arrays, TEXT, text_width),
    )
    if vision.num_patches != side**2:
        raise CheckpointError(
            f"! {POSITIONS}: has {side} x {side} positions, which images of {vision.image_size} "
            f"pixels in patches of {patch_size} don't have"
        )
    second = vocab_size == GEMMA_VOCAB_SIZE
    pixels = PixelConfig(
        mean=HALF, std=HALF, resize="squash", interpolation="bilinear" if second else "bicubic"
    )
    return SigLIPConfig(width, vision, text, pixels=pixels)


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Checks those arrays whose shapes tell the configuration.

    Raises:
        CheckpointError: one is missing or has another number of axes; lists all of them.
    """
    if PROBE not in arrays:
        raise CheckpointError(
            f"has no array {PROBE}, expected attention pooling: models pooled otherwise (gap), "
            f"such as PaliGemma's, are not supported"
        )
    if KERNEL in arrays and arrays[KERNEL].ndim == 2:
        raise CheckpointError(NAFLEX)
    axes = {KERNEL: 4, POSITIONS: 3, EMBEDDING: 2, TEXT_POSITIONS: 3}
    for tower in (IMAGE, TEXT):
        axes |= {f"{tower}encoderblock_0/{name}": n for name, n in ((QUERY, 3), (HIDDEN, 2))}
    problems = [f"- {name}: missing" for name in axes if name not in arrays]
    problems += [
        f"! {name}: expected {n} axes. Got the shape {arrays[name].shape}"
        for name, n in axes.items()
        if name in arrays and arrays[name].ndim != n
    ]
    if not problems and math.isqrt(count := arrays[POSITIONS].shape[1]) ** 2 != count:
        problems.append(f"! {POSITIONS}: expected n x n positions. Got {count}")
    if problems:
        raise CheckpointError("\n".join(["the arrays describe no SigLIP model:", *problems]))


def _block_options(arrays: Mapping[str, np.ndarray], tower: str, width: int) -> dict[str, Any]:
    first = f"{tower}encoderblock_0/"
    hidden = arrays[first + HIDDEN].shape[1]
    return {
        "num_heads": arrays[first + QUERY].shape[1],
        "mlp_width": None if hidden == 4 * width else hidden,
        "norm_epsilon": EPSILON,
    }


def _size_by_name(path: str, patch_size: int, side: int) -> int:
    """Returns the size of images: what the file is called after, if that gives such a grid."""
    numbers = map(int, re.findall(r"(?<![0-9])[0-9]{2,4}(?![0-9])", os.path.basename(path)))
    return next((n for n in numbers if n // patch_size == side), side * patch_size)


def _as_matrix(name: str, array: np.ndarray) -> np.ndarray:
    """Returns an array without the axes that its rule doesn't have: heads, and one of length 1."""
    if name in (POSITIONS, TEXT_POSITIONS) and array.ndim == 3 and len(array) == 1:
        return array[0]
    if name in ("t", "b") and array.shape == (1,):
        return array.reshape(())
    match = ATTENTION.match(name)
    if match is None or array.ndim != (2 if match[2] == "bias" and match[1] != "out" else 3):
        return array
    if match[1] == "out":
        return array.reshape(-1, array.shape[-1])
    array = array.reshape(-1) if match[2] == "bias" else array.reshape(len(array), -1)
    # Three of a block are joined, which rules do along the outputs as PyTorch's first axis.
    return array.T if "encoderblock" in name else array
