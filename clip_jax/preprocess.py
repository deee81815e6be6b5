"""PIL image to model input, equal to torchvision's pipelines of OpenAI and OpenCLIP to the bit."""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from clip_jax.config import PixelConfig
from clip_jax.errors import Unreachable, exhausted
from clip_jax.resample import (
    EIGHT_BITS,
    NEAREST,
    nearest_middle,
    resize_middle,
    shortest_to,
)
from clip_jax.storage import check_picture_size, check_regular

# Accepted formats, whatever the file's name: those that Pillow decodes quickly by itself. Others
# start programs (EPS: Ghostscript), can hold the GIL for as long as a file of a few kilobytes
# specifies (FITS), have no signature, so that any bytes can pass for one (TGA), or are rare.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000", "ICO")
# Above this aspect ratio, only the part that the crop keeps is resized.
THIN = 32
# The most pixels of such a resized picture, for modes that `clip_jax.resample` doesn't have.
MOST_PIXELS = 1 << 26


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalises images for a model of one image size.

    By default the shorter side is resized to `image_size` (bicubic, in the image's own mode). The
    middle is cropped to a square and converted to RGB. EXIF orientation is not applied, as in the
    reference. Other models' images are made in another way, which is in their configuration:
    `Preprocess(config.vision.image_size, config.pixels)`.

    Attributes:
        image_size: the side of the square, in pixels.
        config: filter, way of resizing, mean and standard deviation.

    Example:
        >>> Preprocess(224)(Image.new("L", (640, 480))).shape
        (224, 224, 3)
    """

    image_size: int
    config: PixelConfig = PixelConfig()

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size must be a positive integer, got {self.image_size!r}")

    def __call__(self, image: Image.Image) -> Float32[np.ndarray, "n n 3"]:
        """Returns the normalised image.

        Raises:
            TypeError: not a PIL image.
            ValueError: no pixels, or a mode that Pillow can't resize or convert to RGB.
            OSError: there is not enough memory.
        """
        n = self.image_size
        # In place and in the reference's order; NumPy is slow over a last axis of length 3.
        x = self.pixels(image).reshape(n, 3 * n).astype(np.float32)
        x /= np.float32(255)
        x -= np.tile(np.array(self.config.mean, np.float32), n)
        x /= np.tile(np.array(self.config.std, np.float32), n)
        return x.reshape(n, n, 3)

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "n n 3"]:
        """Returns the cropped image before normalisation, which models accept too; raises alike."""
        check_image(image)
        with told_faults(image):
            square = self._square(image)
            square.info.pop("transparency", None)  # has no effect on RGB, but Pillow may warn
            return np.array(square.convert("RGB"))  # a copy, or it would be read-only

    def _square(self, image: Image.Image) -> Image.Image:
        """Returns the resized picture, in its own mode, as a square."""
        n = self.image_size
        resample = Image.Resampling[self.config.interpolation.upper()]
        if self.config.resize == "squash":
            check_area(image, n * max(image.size))
            return image.resize((n, n), resample)
        if self.config.resize == "longest":
            return _padded(_resized_to_fit(image, n, resample), n)
        size = shortest_to(n, *image.size)
        if max(image.size) > THIN * min(image.size) and min(image.size) < n:
            if image.mode in EIGHT_BITS:
                return resize_middle(image, n, max(size), resample)
            if image.mode in NEAREST and n * max(image.size) <= MOST_PIXELS:
                return nearest_middle(image, n, max(size))
            check_area(image, n * max(size))
        resized = image.resize(size, resample)
        # Python rounds halves to even, and so does the reference
        left, top = (round((side - n) / 2.0) for side in resized.size)
        return resized.crop((left, top, left + n, top + n))


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


def check_area(image: Image.Image, pixels: int) -> None:
    """Raises ValueError if resizing a picture makes another one that is absurdly large."""
    if pixels > MOST_PIXELS:
        raise ValueError(f"its size, {image.size}, is too long and thin for that")


@contextlib.contextmanager
def told_faults(image: Image.Image) -> Iterator[None]:
    """Says which mode Pillow can't resize or convert, and that the memory has run out."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"Pillow can't resize an image of mode {image.mode!r} or convert it to RGB "
            f"({error}); convert it first"
        ) from error
    except MemoryError as error:
        raise exhausted(error) or error from error


def _resized_to_fit(image: Image.Image, n: int, resample: Image.Resampling) -> Image.Image:
    ratio = max(side / n for side in image.size)
    width, height = (round(side / ratio) for side in image.size)
    if not width or not height:
        raise ValueError(f"its size, {image.size}, is too long and thin for that")
    check_area(image, width * image.height)
    return image.resize((width, height), resample)


def _padded(image: Image.Image, n: int) -> Image.Image:
    """Returns the picture in the middle of a black square."""
    left, top = ((n - side) // 2 for side in image.size)
    margins = (left, top, n - image.width - left, n - image.height - top)
    padded = ImageOps.expand(image, margins, 0)
    if image.mode == "P" and (palette := image.getpalette()):
        padded.putpalette(palette)
    return padded


def open_image(path: str | os.PathLike[str], formats: Sequence[str] | None = None) -> Image.Image:
    """Opens an image file and reads all of it, so that damage is found here.

    Pillow's guard against decompression bombs stays on.

    Args:
        path: the file.
        formats: the accepted formats by Pillow's names; `FORMATS` by default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read, is not an image, is damaged or unreasonably large; the message
            names the path and the reason.
        OSError: the machine has run out of memory or open files.
    """
    known = known_formats(formats)
    try:
        check_regular(path)
        check_picture_size(path, os.path.getsize(path))
        return _loaded(path, known)
    except (FileNotFoundError, Unreachable):
        raise
    except Exception as error:  # decoders raise errors of any kind, SyntaxError included
        raise ValueError(f"{os.fspath(path)}: {_reason(path, error)}") from error


def decode_image(data: bytes, formats: Sequence[str] | None = None) -> Image.Image:
    """Decodes the bytes of an image file completely, as `open_image`.

    Raises:
        ValueError: it is not an image, damaged or unreasonably large; the message says why.
        OSError: the machine has run out of memory.
    """
    known = known_formats(formats)
    try:
        return _loaded(io.BytesIO(data), known)
    except Unreachable:
        raise
    except Exception as error:  # as above
        raise ValueError(_fault(error, data[:16])) from error


def known_formats(formats: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the accepted formats, in upper case.

    Args:
        formats: Pillow's names; by default those of `FORMATS` that this Pillow has.

    Raises:
        ValueError: Pillow has no such format; the message lists those it has.
    """
    return _known(None if formats is None else tuple(name.upper() for name in formats))


@functools.cache
def _known(formats: tuple[str, ...] | None) -> tuple[str, ...]:
    Image.init()
    if formats is None:
        return tuple(name for name in FORMATS if name in Image.OPEN)
    if unknown := [name for name in formats if name not in Image.OPEN]:
        raise ValueError(
            f"Pillow opens no format {' and no format '.join(map(repr, unknown))} here; it knows "
            f"{', '.join(sorted(Image.OPEN))}"
        )
    return formats


def _loaded(file: str | os.PathLike[str] | io.BytesIO, formats: tuple[str, ...]) -> Image.Image:
    try:
        with Image.open(file, formats=formats) as image:
            image.load()
            return image
    except Exception as error:
        if out := exhausted(error):
            raise out from error
        raise


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if os.path.isdir(path):
        return "is a directory, not an image file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    try:
        with open(path, "rb") as file:
            return _fault(error, file.read(16))
    except OSError:
        return _fault(error, b"?")


def _fault(error: Exception, beginning: bytes) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"refused, because it is too large: {error}"
    if not beginning:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        for name in Image.OPEN.keys() - set(FORMATS):
            with contextlib.suppress(Exception):  # of so short a file
                if (is_one := Image.OPEN[name][1]) and is_one(beginning) is True:
                    return f"is a picture in the format {name}, which is opened only if it is said"
        return "is not an image in a format that Pillow knows"
    return f"the image is damaged ({error})"
