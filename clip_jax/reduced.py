"""JPEG files decoded at a half, a quarter or an eighth of their scale.

The decoder then makes the smaller picture directly, of fewer frequencies of each block of 8 x 8
pixels: a photograph of 12 million pixels is read and resized in a third of the time. Pixels differ
a little from those of all frequencies, which `benchmarks/decode.py` measures.
"""

from collections.abc import Callable

from PIL import Image

from clip_jax.geometry import Geometry

# A reduced picture has at least this many pixels for each of the resized one's, along each side.
# With fewer, embeddings differ visibly; more costs time for nothing (`benchmarks/decode.py`).
MARGIN = 2


def reduce(image: Image.Image, geometry: Callable[[int, int], Geometry]) -> None:
    """Makes an opened JPEG that isn't loaded yet be decoded at the least scale that is enough.

    Pictures of other formats, and those that aren't large enough, stay as they are.

    Args:
        image: the picture; its size changes.
        geometry: says how a picture of a width and a height gets the model's size.
    """
    if image.format not in ("JPEG", "MPO"):
        return
    # Whichever way its EXIF data turn it.
    lying, standing = geometry(*image.size), geometry(*image.size[::-1])
    width, height = max(lying.width, standing.height), max(lying.height, standing.width)
    if width and height:
        image.draft(None, (MARGIN * width, MARGIN * height))
