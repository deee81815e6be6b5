"""Random parameters of trained scale, made by all cores: a ViT-L/14 has 428 million of them."""

import concurrent.futures
import math
import os
import zlib
from typing import Any

import numpy as np

from clip_jax.config import CLIPConfig


def random_tree(config: CLIPConfig, seed: int = 0) -> dict[str, Any]:
    """A public tree of float32 arrays, none of which is 0 or 1.

    Gains, biases and statistics lie around what training leaves; matrices keep the variance of what
    passes through them, so that features, norms and logits are of realistic size at any depth.
    """
    from clip_jax.nn import parameter_shapes, unflatten

    shapes = parameter_shapes(config)

    def make(item: tuple[str, tuple[int, ...]]) -> np.ndarray:
        return _array(*item, np.random.default_rng([seed, zlib.crc32(item[0].encode())]))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        arrays = dict(zip(shapes, pool.map(make, shapes.items()), strict=True))
    arrays["logit_scale"] = np.array(math.log(100), np.float32)
    return unflatten(arrays)


def _array(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if path.endswith("/num_batches_tracked"):
        return np.full(shape, 1000, np.float32)
    if path.endswith("/var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if path.endswith("/scale"):
        # The last gain of a bottleneck is small, or the sum would grow with the depth.
        is_last = "/layer" in path and "/bn3/" in path
        return rng.uniform(*((0.1, 0.3) if is_last else (0.6, 1.4)), shape).astype(np.float32)
    array = rng.standard_normal(shape, np.float32)
    if path.endswith("embedding"):
        return array * np.float32(0.3)
    if len(shape) < 2:
        return array * np.float32(0.1)
    # A ReLU halves the second moment of what convolutions see.
    gain = 2 if len(shape) == 4 else 1
    return array * np.float32((gain / math.prod(shape[:-1])) ** 0.5)
