"""JPEG files decoded at a half, a quarter or an eighth of their scale.

The decoder then makes the smaller picture directly, of fewer frequencies of each block of 8 x 8
pixels: a photograph of 12 million pixels is read and resized in a third of the time. Pixels differ
a little from those of all frequencies, which `benchmarks/decode.py` measures.
"""

from collections.abc import Callable

from PIL import Image

from clip_jax.geometry import Geometry

# A reduced picture has at least this many pixels for each of the resized one's, along each side.
# With fewer, embeddings differ visibly; more costs time for little (`benchmarks/decode.py`).
MARGIN = 2

_SCALES = (2, 4, 8)
# Where an image keeps the size that it would have had.
_FULL = "clip_jax_full_size"


def reduce(image: Image.Image, geometry: Callable[[int, int], Geometry]) -> None:
    """Makes an opened JPEG that isn't loaded yet be decoded at the least scale that is enough.

    Pictures of other formats, and those that aren't large enough, stay as they are.

    Args:
        image: the picture; its size changes.
        geometry: says how a picture of a width and a height gets the model's size.
    """
    if image.format not in ("JPEG", "MPO"):
        return
    size = image.size
    # Whichever way its EXIF data turn it.
    lying, standing = geometry(*size), geometry(*size[::-1])
    width, height = max(lying.width, standing.height), max(lying.height, standing.width)
    if width and height:
        image.draft(None, (MARGIN * width, MARGIN * height))
    if image.size != size:
        image.info[_FULL] = size


def extent(image: Image.Image) -> tuple[float, float]:
    """Returns the width and height that a picture fills, in its own pixels.

    The last column and row of a reduced picture are often less than a pixel: an eighth of a width
    of 1,001 is 125.125 pixels, of 126.
    """
    (width, height), scale = _full(image)
    return width / scale, height / scale


def full_size(image: Image.Image) -> tuple[int, int]:
    """Returns the width and height that a picture would have if it weren't reduced."""
    return _full(image)[0]


def _full(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Returns that size, and by what the picture was divided."""
    if (full := image.info.get(_FULL)) is not None:
        for size in (full, full[::-1]):  # it may have been turned meanwhile
            for scale in _SCALES:
                if image.size == tuple(-(-side // scale) for side in size):
                    return size, scale
    return image.size, 1  # it isn't reduced, or somebody has changed its size since
