"""Resizes and crops stacks of frames of one size on the device, equal to Pillow to the bit.

Pillow resizes bytes in fixed point, along rows and along columns, and rounds to bytes after each.
Integers have no order of summation, so XLA's sums are Pillow's. Which of the two passes comes first
matters to the rounding: rows, but newer versions of Pillow (such as 13.0) begin with the columns of
frames that lose more than twice as much height as width.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from PIL import Image

from clip_jax.config import PixelConfig
from clip_jax.image_size import ImageSize, sides_of
from clip_jax.resample import PRECISION, coefficients, shortest_to


def frame_resizer(
    height: int, width: int, image_size: ImageSize, config: PixelConfig
) -> Callable[[UInt8[Array, "b h w 3"]], UInt8[Array, "b n m 3"]]:
    """Returns a function that makes a model's pixels of RGB frames, as `Preprocess.pixels` does.

    Args:
        height: the frames' height in pixels.
        width: their width.
        image_size: the side of the square that the model takes, or its images' height and width.
        config: filter and way of resizing.

    Raises:
        ValueError: a side is less than 1, or the frames are so long and thin that a side would
            vanish.
    """
    if min(height, width) < 1:
        raise ValueError(f"frames must have at least one pixel. Got {height} x {width} pixels.")
    n, m = sides_of(image_size)
    margins = (0, 0, 0, 0)
    resized_height, resized_width = n, m
    if config.resize == "shortest" and n == m:
        resized_width, resized_height = shortest_to(n, width, height)
    elif config.resize == "shortest":
        ratio = min(width / m, height / n)
        resized_width, resized_height = round(width / ratio), round(height / ratio)
    elif config.resize == "longest":
        ratio = max(width / m, height / n)
        resized_width, resized_height = round(width / ratio), round(height / ratio)
        if not resized_width or not resized_height:
            raise ValueError(f"frames of {height} x {width} pixels are too long and thin.")
        left, top = (m - resized_width) // 2, (n - resized_height) // 2
        margins = (top, n - resized_height - top, left, m - resized_width - left)
    resample = Image.Resampling[config.interpolation.upper()]
    across = _window(width, resized_width, m, resample)
    down = _window(height, resized_height, n, resample)
    passes = [(across, 2), (down, 1)]
    lost_height, lost_width = height - resized_height, width - resized_width
    if lost_height > max(0, 2 * lost_width) and _begins_with_columns():
        passes.reverse()

    def resize(frames: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b n m 3"]:
        for (places, weights), axis in passes:
            frames = _weighted(frames, places, weights, axis)
        top, bottom, left, right = margins
        return jnp.pad(frames, ((0, 0), (top, bottom), (left, right), (0, 0)))

    return resize


@functools.cache
def _begins_with_columns() -> bool:
    """Whether the installed Pillow begins with columns where much height is lost."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 16), np.uint8)
    image = Image.fromarray(noise)
    whole = image.resize((16 + 4, 16))
    return whole.tobytes() == image.resize((16, 16)).resize((16 + 4, 16)).tobytes()


def _window(
    length: int, resized: int, n: int, resample: Image.Resampling
) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Returns places and weights of the pixels that the middle `n` of a resized line consist of."""
    begin = max(round((resized - n) / 2.0), 0)
    weights, first = coefficients(length, resized, begin, min(begin + n, resized), resample)
    places = first[:, None] + np.arange(weights.shape[1])
    used = np.flatnonzero(weights.any(axis=0))  # the last column is often empty
    return np.minimum(places, length - 1)[:, used], weights[:, used].astype(np.int32)


def _weighted(
    frames: UInt8[Array, "..."],
    places: Int[np.ndarray, "n k"],
    weights: Int[np.ndarray, "n k"],
    axis: int,
) -> UInt8[Array, "..."]:
    shape = [1] * frames.ndim
    shape[axis] = -1
    half = jnp.int32(1 << (PRECISION - 1))
    terms = (
        jnp.take(frames, place, axis=axis).astype(jnp.int32) * weight.reshape(shape)
        for place, weight in zip(places.T, weights.T, strict=True)
    )
    total = functools.reduce(jnp.add, terms, half)
    return jnp.clip(total >> PRECISION, 0, 255).astype(jnp.uint8)
