"""Computes only the middle of an enlarged picture that is long and thin.

Pillow computes all of it, although only the middle is kept: from 65,535 x 1 pixels for a model of
size 224, that is 14,679,840 x 224. Pillow's `box=` would compute less, but different pixels: it is
in single precision. The results here equal Pillow's to the bit: coefficients are computed and
rounded in the same order; and rows come before columns, as when Pillow enlarges.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

# Modes of 8 bits per channel, which NumPy has too. Pillow resizes most others in another way.
EIGHT_BITS = ("L", "La", "LA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")
# Modes whose values can't be mixed, for which Pillow uses the nearest pixel.
NEAREST = ("1", "P")
# Pillow's fixed point: fractions of 2^-22.
PRECISION = 22


def shortest_to(n: int, width: int, height: int) -> tuple[int, int]:
    """Returns the width and height of a picture whose shorter side becomes n."""
    if width <= height:
        return n, int(n * height / width)
    return int(n * width / height), n


def resize_middle(
    image: Image.Image,
    size: int,
    length: int,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Returns the middle square, with sides of `size` pixels, of `image.resize(..., resample)`.

    Args:
        image: an image with a mode in `EIGHT_BITS`.
        size: the new length of the shorter side, more than it was.
        length: the new length of the longer side, if it were resized whole.
        resample: bicubic or bilinear.
    """
    if image.mode in ("LA", "RGBA"):  # as Pillow does: colours are weighted by their alpha
        premultiplied = image.convert({"LA": "La", "RGBA": "RGBa"}[image.mode])
        return resize_middle(premultiplied, size, length, resample).convert(image.mode)
    is_wide = image.width > image.height
    begin = round((length - size) / 2.0)
    weights, first = coefficients(max(image.size), length, begin, begin + size, resample)
    low, high = int(first[0]), int(first[-1]) + weights.shape[1]
    if is_wide:
        # Pixels beyond the picture are black, and have no weight.
        window = image.crop((low, 0, high, image.height))
        middle = _weighted(np.asarray(window), weights, first - low, axis=1)
        # Pillow's second pass; the first has nothing left to do.
        return _image(middle, image).resize((size, size), resample)
    window = image.crop((0, low, image.width, high))
    narrow = window.resize((size, window.height), resample)
    return _image(_weighted(np.asarray(narrow), weights, first - low, axis=0), image)


def nearest_middle(image: Image.Image, size: int, length: int) -> Image.Image:
    """As `resize_middle`, for a mode in `NEAREST`; the order of the two axes doesn't matter."""
    begin, (width, height) = round((length - size) / 2.0), image.size
    if width > height:
        whole, box = (length, height), (begin, 0, begin + size, height)
    else:
        whole, box = (width, length), (0, begin, width, begin + size)
    strip = image.resize(whole, Image.Resampling.NEAREST).crop(box)
    return strip.resize((size, size), Image.Resampling.NEAREST)


def _image(values: np.ndarray, like: Image.Image) -> Image.Image:
    return Image.frombytes(like.mode, values.shape[1::-1], np.ascontiguousarray(values).tobytes())


def coefficients(
    length: int, resized: int, begin: int, end: int, resample: Image.Resampling
) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, " n"]]:
    """Computes the weights of a line's pixels for pixels `begin` to `end` - 1 of the resized one.

    Returns:
        The weights in fixed point, one row per resized pixel; and the first pixel of each row.
    """
    scale = float(np.float32(length)) / resized  # Pillow keeps the side in single precision
    stretch = max(scale, 1.0)
    reach, weigh = _FILTERS[resample]
    support = reach * stretch
    count = math.ceil(support) * 2 + 1
    centers = (np.arange(begin, end) + 0.5) * scale
    # Truncated towards 0, as C does.
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), length)
    places = first[:, None] + np.arange(count)
    weights = weigh((places - centers[:, None] + 0.5) * (1.0 / stretch))
    weights[places >= last[:, None]] = 0.0
    total = np.zeros(len(centers))
    for column in weights.T:  # summed in the order of Pillow's loop
        total += column
    weights = np.divide(weights, total[:, None], where=total[:, None] != 0, out=weights)
    fixed = weights * (1 << PRECISION)
    return np.trunc(np.where(fixed < 0, fixed - 0.5, fixed + 0.5)).astype(np.int64), first


def _bicubic(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Evaluates Pillow's filter by Pillow's own formulas."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Evaluates Pillow's triangle."""
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


# How far each filter reaches, in pixels, and its weights.
_FILTERS = {Image.Resampling.BICUBIC: (2.0, _bicubic), Image.Resampling.BILINEAR: (1.0, _bilinear)}


def _weighted(
    pixels: np.ndarray, weights: Int[np.ndarray, "n k"], first: Int[np.ndarray, " n"], axis: int
) -> np.ndarray:
    """Returns weighted sums of pixels along an axis, rounded and clipped to bytes."""
    lines = np.moveaxis(pixels, axis, 0)
    shape = (-1, *[1] * (lines.ndim - 1))
    total = np.full((len(first), *lines.shape[1:]), 1 << (PRECISION - 1), np.int64)
    for column, weight in enumerate(weights.T):
        total += lines[first + column] * weight.reshape(shape)
    clipped = np.clip(total >> PRECISION, 0, 255).astype(np.uint8)
    return np.moveaxis(clipped, 0, axis)
