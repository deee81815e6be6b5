"""Vision Transformers at another image size: their positions resized as other libraries do it.

The positions of the patches form a grid, which is resized like an image. OpenCLIP and timm do it
once, on loading: bicubic with antialiasing (Keys 1981, a = -1/2). Hugging Face's transformers do it
in every call with `interpolate_pos_encoding=True`: bicubic without antialiasing (a = -3/4).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from clip_jax.config import ViTConfig
from clip_jax.image_size import ImageSize, as_image_size, shown_size

PositionResize = Literal["open_clip", "huggingface"]


def resize_vision(
    vision: ViTConfig,
    positions: Float[np.ndarray, "l w"],
    image_size: ImageSize,
    rule: PositionResize,
    *,
    drop_remainder: bool = False,
) -> tuple[ViTConfig, Float[np.ndarray, "m w"]]:
    """Returns a tower's configuration and positions for images of another size.

    Args:
        vision: the tower.
        positions: its positions, with those of a class token, if there is one, first.
        image_size: the new size: the side of a square, or (height, width).
        rule: whose way of resizing.
        drop_remainder: whether the sides may be no multiples of the patch size. What is left at the
            right and at the bottom is then not seen.

    Raises:
        ValueError: the size is below a patch, no multiple of it, or no size.
    """
    size = as_image_size(image_size)
    if size == vision.image_size:
        return vision, positions
    try:
        new = dataclasses.replace(vision, image_size=size, drops_remainder=True)
    except ValueError as error:
        raise ValueError(f"the model can't take images of {shown_size(size)}: {error}") from None
    if new.has_remainder and not drop_remainder:
        rows, columns = new.grid
        sides = rows * vision.patch_size, columns * vision.patch_size
        raise ValueError(
            f"image_size must be a multiple of the model's patches of {vision.patch_size} pixels, "
            f"such as {shown_size(sides)}. Got {shown_size(size)}: take such a size, or have the "
            f"pixels left out that remain at the right and at the bottom (drop_remainder=True, "
            f"--drop-remainder)."
        )
    new = dataclasses.replace(new, drops_remainder=new.has_remainder)
    first = len(positions) - vision.num_patches  # after the class token's
    resized = resize_positions(positions[first:], vision.grid, new.grid, rule)
    return new, np.concatenate([positions[:first], resized])


def resize_positions(
    positions: Float[np.ndarray, "l w"],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    rule: PositionResize,
) -> Float[np.ndarray, "m w"]:
    """Resizes a grid of positions, computing in float64; the same array for the same grid.

    Args:
        positions: those of the patches, row by row, without a class token's.
        grid: rows and columns that they have.
        new_grid: rows and columns that they are to have.
        rule: "open_clip" or "huggingface".
    """
    if grid == new_grid:
        return positions
    rows, columns = (resize_matrix(old, new, rule) for old, new in zip(grid, new_grid, strict=True))
    table = np.asarray(positions, np.float64).reshape(*grid, -1)
    resized = np.einsum("hr,rcw->hcw", rows, table, optimize=True)
    resized = np.einsum("vc,hcw->hvw", columns, resized, optimize=True)
    dtype = np.result_type(positions.dtype, np.float32)  # halves would be rounded once more
    return resized.reshape(-1, positions.shape[-1]).astype(dtype)


def resize_matrix(old: int, new: int, rule: PositionResize) -> Float[np.ndarray, "new old"]:
    """Returns the matrix that resizes a line of `old` values to `new`, their centres aligned."""
    return {"open_clip": _antialiased, "huggingface": _plain}[rule](old, new)


def check_rule(rule: Any) -> None:
    """Raises ValueError if there is no such way of resizing."""
    if rule not in get_args(PositionResize):
        raise ValueError(f'position_resize must be "open_clip" or "huggingface". Got {rule!r}.')


def _antialiased(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """When shrinking, the kernel is stretched; weights beyond the border are left out."""
    ratio = old / new
    stretch = max(ratio, 1.0)
    centers = ratio * (np.arange(new) + 0.5)[:, None]
    # Truncated towards 0.
    first = np.maximum((centers - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + 2 * stretch + 0.5).astype(np.int64), old)
    places = np.arange(old)[None]
    weights = _cubic(-0.5)((places + 0.5 - centers) / stretch)
    weights[(places < first) | (places >= last)] = 0.0
    return weights / weights.sum(axis=1, keepdims=True)


def _plain(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Four taps, also when shrinking; those beyond the border repeat the last value."""
    centers = old / new * (np.arange(new) + 0.5) - 0.5
    floors = np.floor(centers).astype(np.int64)
    weights, kernel = np.zeros((new, old)), _cubic(-0.75)
    for tap in (-1, 0, 1, 2):
        places = np.clip(floors + tap, 0, old - 1)
        weights[np.arange(new), places] += kernel(floors + tap - centers)
    return weights


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the cubic convolution kernel with that parameter."""

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel
