"""Large pictures in bands, so that what is computed on the way needs little memory.

A file of half a megabyte can hold a picture of 700 MB, which Pillow admits. NumPy's and Pillow's
own intermediate results would be several times that, for each thread that decodes.
"""

from collections.abc import Callable, Iterator

from PIL import Image

# Pixels of a band.
MOST_AT_ONCE = 1 << 18

Box = tuple[int, int, int, int]


def bands(size: tuple[int, int], margin: int = 0) -> Iterator[tuple[Box, Box]]:
    """Yields boxes that cover a picture, across its longer side.

    Args:
        size: width and height of the picture.
        margin: how many lines of its neighbours a band's second box has too, where there are any.

    Yields:
        The box of a band in the picture; and the same box with its margin.
    """
    width, height = size
    is_wide = width > height
    length, across = max(size), min(size)
    step = max(1, MOST_AT_ONCE // max(across, 1))
    for begin in range(0, length, step):
        end = min(begin + step, length)
        low, high = max(begin - margin, 0), min(end + margin, length)
        if is_wide:
            yield (begin, 0, end, height), (low, 0, high, height)
        else:
            yield (0, begin, width, end), (0, low, width, high)


def in_bands(
    image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Returns a picture each pixel of which depends on the same pixel of another one.

    Args:
        image: the other picture.
        mode: the new picture's mode.
        change: makes one of that mode of a part of the picture.
    """
    if image.width * image.height <= MOST_AT_ONCE:
        return change(image)
    result = Image.new(mode, image.size)
    for box, _ in bands(image.size):
        result.paste(change(image.crop(box)), box)
    return result
