"""What is wrong with a picture or its file, said for whoever gave it."""

import contextlib
import os
from collections.abc import Collection, Iterator

import numpy as np
from PIL import Image

from clip_jax.bombs import TooThin
from clip_jax.errors import exhausted

# The first bytes of HEIF files, from the fourth on, and of AVIF.
_BRANDS = {
    **dict.fromkeys(
        (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1", b"ftypheim"),
        "is a HEIC picture, which needs a plug-in: pip install 'clip-jax-flax[heic]', then try "
        "again",
    ),
    b"ftypavif": "is an AVIF picture, which this Pillow can't read: pip install -U pillow",
}


def check_image(image: object) -> None:
    """Raises TypeError for what is no PIL image, ValueError for one without pixels."""
    if not isinstance(image, Image.Image):
        name = type(image).__name__
        way_out = {"ndarray": "use Image.fromarray"}.get(name, "use clip_jax.open_image")
        if isinstance(image, (str, bytes, os.PathLike, np.ndarray)):
            raise TypeError(f"expected a PIL image, got {name}; {way_out}")
        raise TypeError(f"expected a PIL image, got {name}")
    if 0 in image.size:
        raise ValueError(f"the image has no pixels: its size is {image.size}")


@contextlib.contextmanager
def told_faults(image: Image.Image) -> Iterator[None]:
    """Says which mode Pillow can't resize or convert, and that the memory has run out."""
    try:
        yield
    except TooThin:
        raise
    except ValueError as error:
        raise ValueError(
            f"Pillow can't resize an image of mode {image.mode!r} or convert it to RGB "
            f"({error}); convert it first"
        ) from error
    except MemoryError as error:
        raise exhausted(error) or error from error


def reason(path: str | os.PathLike[str], error: Exception, formats: Collection[str]) -> str:
    """Returns why a picture's file can't be opened or decoded; the arguments are as for `fault`."""
    if os.path.isdir(path):
        return "is a directory, not an image file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    try:
        with open(path, "rb") as file:
            return fault(error, file.read(16), formats)
    except OSError:
        return fault(error, b"?", formats)


def fault(error: Exception, beginning: bytes, formats: Collection[str]) -> str:
    """Returns why the bytes of a file aren't decoded.

    Args:
        error: what Pillow has raised.
        beginning: the first 16 bytes.
        formats: the formats that are accepted where nothing is said.
    """
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"refused, because it is too large: {error}"
    if not beginning:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        if advice := _BRANDS.get(beginning[4:12]):
            return advice
        for name in Image.OPEN.keys() - set(formats):
            with contextlib.suppress(Exception):  # of so short a file
                if (is_one := Image.OPEN[name][1]) and is_one(beginning) is True:
                    return f"is a picture in the format {name}, which is opened only if it is said"
        return "is not an image in a format that Pillow knows"
    return f"the image is damaged ({error})"
