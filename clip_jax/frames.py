"""Resizes and crops stacks of frames of one size on the device, equal to Pillow to the bit.

Pillow resizes bytes in fixed point, along rows and along columns, and rounds to bytes after each.
Integers have no order of summation, so XLA's sums are Pillow's. Which of the two passes comes first
matters to the rounding: rows, but newer versions of Pillow (such as 13.0) begin with the columns of
frames that lose more than twice as much height as width.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from PIL import Image

from clip_jax.geometry import Geometry
from clip_jax.resample import PRECISION, coefficients


def frame_resizer(
    frame_size: tuple[int, int],
    sides: tuple[int, int],
    place: Geometry,
    resample: Image.Resampling,
    margin: Sequence[int] = (0, 0, 0),
) -> Callable[[UInt8[Array, "b h w 3"]], UInt8[Array, "b n m 3"]]:
    """Returns a function that makes a model's pixels of RGB frames, as Pillow would.

    Args:
        frame_size: the frames' height and width in pixels.
        sides: the height and width of the model's images.
        place: what the frames are resized to, and which part of that is kept.
        resample: bicubic or bilinear.
        margin: the colour around frames that don't fill the model's images.

    Raises:
        ValueError: the frames are so long and thin that a side would vanish.
    """
    (height, width), (n, m) = frame_size, sides
    if 0 in place.size:
        raise ValueError(f"frames of {height} x {width} pixels are too long and thin.")
    left, right = max(place.left, 0), min(place.left + m, place.width)
    top, bottom = max(place.top, 0), min(place.top + n, place.height)
    across = _window(width, place.width, left, right, resample)
    down = _window(height, place.height, top, bottom, resample)
    first, last = down[0].min(), down[0].max() + 1  # the rows that are needed at all
    down = down[0] - first, down[1]
    passes = [(across, 2), (down, 1)]
    lost_height, lost_width = height - place.height, width - place.width
    if lost_height > max(0, 2 * lost_width) and _begins_with_columns():
        passes.reverse()

    def resize(frames: UInt8[Array, "b h w 3"]) -> UInt8[Array, "b n m 3"]:
        frames = frames[:, first:last]
        for (places, weights), axis in passes:
            frames = _weighted(frames, places, weights, axis)
        if frames.shape[1:3] == (n, m):
            return frames
        whole = jnp.broadcast_to(jnp.array(margin, jnp.uint8), (len(frames), n, m, 3))
        return whole.at[
            :, top - place.top : bottom - place.top, left - place.left : right - place.left
        ].set(frames)

    return resize


@functools.cache
def _begins_with_columns() -> bool:
    """Whether the installed Pillow begins with columns where much height is lost."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 16), np.uint8)
    image = Image.fromarray(noise)
    whole = image.resize((16 + 4, 16))
    return whole.tobytes() == image.resize((16, 16)).resize((16 + 4, 16)).tobytes()


def _window(
    length: int, resized: int, begin: int, end: int, resample: Image.Resampling
) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Returns places and weights of what pixels `begin` to `end` of a resized line consist of."""
    weights, first = coefficients(length, resized, begin, end, resample)
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
    # A sum of gathered pixels, which XLA makes one loop without intermediate arrays. On a CPU this
    # takes the least time: a product with a matrix of weights takes up to eight times as long, as
    # nearly all of its weights are 0 (`benchmarks/decode.py` has both).
    terms = (
        jnp.take(frames, place, axis=axis, mode="clip").astype(jnp.int32) * weight.reshape(shape)
        for place, weight in zip(places.T, weights.T, strict=True)
    )
    total = functools.reduce(jnp.add, terms, half)
    return jnp.clip(total >> PRECISION, 0, 255).astype(jnp.uint8)
