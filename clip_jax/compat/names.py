"""The parameter tree of transformers' Flax classes, and ours.

The arrays have the same layout in both. Theirs have separate queries, keys and values, and names
as PyTorch's with Flax's ending: `text_model/encoder/layers/0/self_attn/q_proj/kernel`.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.convert.rules import HUGGING_FACE, spelled, target_to_source
from clip_jax.nn import flatten, unflatten

# How Flax spells PyTorch's `weight`, by the end of our path where that isn't Flax's.
_LEAVES = {"positional_embedding": "embedding", "text_projection": "kernel", "proj": "kernel"}
# The axes of a kernel of ours that PyTorch's has in its place, by the number of axes.
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


@functools.cache
def flax_paths(path: str) -> tuple[str, ...]:
    """Returns the path in their tree of an array of ours, or the paths of its three parts.

    Example:
        >>> flax_paths("ln_final/scale")
        ('text_model/final_layer_norm/scale',)
        >>> flax_paths("transformer/resblocks/0/attn/in_proj/bias")[0]
        'text_model/encoder/layers/0/self_attn/q_proj/bias'
    """
    match = target_to_source(path, HUGGING_FACE)
    assert match is not None, f"transformers has no {path}"
    last = path.rpartition("/")[2]
    ending = _LEAVES.get(last, last)
    return tuple(
        "/".join([*parts[:-1], ending if parts[-1] == "weight" else parts[-1]])
        for parts in (name.split(".") for name in spelled(match[1]))
    )


@functools.cache
def flax_path(path: str) -> str:
    """Returns the same where queries, keys and values are separate in our path too.

    Example:
        >>> flax_path("visual/transformer/resblocks/0/attn/v_proj/bias")
        'vision_model/encoder/layers/0/self_attn/v_proj/bias'
    """
    joined = re.sub(r"/attn/([qkv])_proj/", "/attn/in_proj/", path)
    paths = flax_paths(joined)
    return paths[0] if joined == path else next(p for p in paths if re.search(_part(path), p))


def _part(path: str) -> str:
    return re.findall(r"/[qkv]_proj/", path)[0]


def to_flax(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns their tree with the arrays of ours; queries, keys and values become views."""
    arrays = {}
    for path, array in flatten(tree).items():
        names = flax_paths(path)
        parts = [array] if len(names) == 1 else np.split(array, len(names), axis=-1)
        arrays.update(zip(names, parts, strict=True))
    return unflatten(arrays)


def to_pytorch(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of their tree by PyTorch's names and in its layout."""
    arrays = {}
    for path, array in flatten(tree).items():
        *modules, ending = path.split("/")
        array = np.asarray(array)
        if ending == "kernel":
            array = array.transpose(_KERNEL_AXES[array.ndim])
        if ending in ("kernel", "scale", "embedding"):
            ending = "weight"
        arrays[".".join([*modules, ending])] = np.asarray(array, order="C")
    return arrays
