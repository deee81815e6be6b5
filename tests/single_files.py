"""Single files of Stable Diffusion with text towers of random arrays."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clip_jax.config import TextConfig
from clip_jax.convert.rules import Table, spelled, target_to_source
from clip_jax.shapes import text_shapes

Arrays = dict[str, np.ndarray]
UNET = {"model.diffusion_model.out.0.weight": np.zeros(3, np.float16)}


def tower(width: int, heads: int, layers: int, embed_dim: int | None = None) -> Arrays:
    """Random arrays of a tower of few words by our paths, in half precision."""
    config = TextConfig(width, layers, heads, 11, 61, has_projection=embed_dim is not None)
    rng = np.random.default_rng(width)
    shapes = text_shapes(config, embed_dim)
    return {path: rng.normal(0, 0.02, shape).astype(np.float16) for path, shape in shapes.items()}


def named(arrays: Arrays, table: Table, prefix: str) -> Arrays:
    """The arrays by a library's names after a prefix."""
    result = {}
    for path, array in arrays.items():
        match = target_to_source(path, table)
        assert match is not None
        rule, name = match
        for one, part in zip(spelled(name), rule.to_theirs(array), strict=True):
            result[prefix + one] = np.ascontiguousarray(part)
    return result


def write(folder: Path, *parts: Arrays) -> Path:
    """Writes a file of these arrays and one of another network; gives its path."""
    arrays = {name: array for part in (UNET, *parts) for name, array in part.items()}
    save_file(arrays, folder / "sd.safetensors")
    return folder / "sd.safetensors"
