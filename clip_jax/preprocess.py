"""PIL image to model input, equal to the reference's torchvision pipeline to the last bit."""

import dataclasses
import io
import os

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from clip_jax.nn.pixels import MEAN, STD


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalises images for a model of one image size.

    The shorter side is resized to `image_size` (bicubic, in the image's own mode), the middle is
    cropped to a square and converted to RGB. EXIF orientation is not applied, as in the reference.

    Example:
        >>> Preprocess(224)(Image.new("L", (640, 480))).shape
        (224, 224, 3)
    """

    image_size: int

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or self.image_size < 1:
            raise ValueError(f"image_size must be a positive integer, got {self.image_size!r}")

    def __call__(self, image: Image.Image) -> Float32[np.ndarray, "n n 3"]:
        """The normalised image.

        Raises:
            TypeError: not a PIL image.
            ValueError: no pixels, or a mode that Pillow can't resize or convert to RGB.
        """
        n = self.image_size
        # In place and in the reference's order; over axes of 3 numbers numpy would be slow
        x = self.pixels(image).reshape(n, 3 * n).astype(np.float32)
        x /= np.float32(255)
        x -= np.tile(np.array(MEAN, np.float32), n)
        x /= np.tile(np.array(STD, np.float32), n)
        return x.reshape(n, n, 3)

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "n n 3"]:
        """The cropped image before it is normalised; models accept this too. Raises the same."""
        if not isinstance(image, Image.Image):
            name = type(image).__name__
            way_out = {"ndarray": "use Image.fromarray"}.get(name, "use clip_jax.open_image")
            if isinstance(image, (str, bytes, os.PathLike, np.ndarray)):
                raise TypeError(f"expected a PIL image, got {name}; {way_out}")
            raise TypeError(f"expected a PIL image, got {name}")
        if 0 in image.size:
            raise ValueError(f"the image has no pixels: its size is {image.size}")
        n = self.image_size
        try:
            resized = image.resize(self._resized(*image.size), Image.Resampling.BICUBIC)
            # Python rounds halves to even, and so does the reference
            left, top = (round((side - n) / 2.0) for side in resized.size)
            square = resized.crop((left, top, left + n, top + n))
            square.info.pop("transparency", None)  # changes no RGB value, but Pillow may warn of it
            rgb = square.convert("RGB")
        except ValueError as error:
            raise ValueError(
                f"Pillow can't resize an image of mode {image.mode!r} or convert it to RGB "
                f"({error}); convert it first"
            ) from error
        return np.array(rgb)  # a copy, or it would be read-only

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        n = self.image_size
        if width <= height:
            return n, int(n * height / width)
        return int(n * width / height), n


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file and read all of it, so that what is wrong with it shows here.

    Pillow's guard against decompression bombs stays on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read, is not an image, is damaged or unreasonably large; the message
            names the path and the reason.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise whatever they trip over, SyntaxError included
        raise ValueError(f"{os.fspath(path)}: {_reason(path, error)}") from error


def decode_image(data: bytes) -> Image.Image:
    """The picture in the bytes of an image file, all of it; as `open_image`.

    Raises:
        ValueError: it is no image, or one that is damaged or unreasonably large; says the reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image
    except Exception as error:  # as above
        raise ValueError(_fault(error, is_empty=not data)) from error


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    if os.path.isdir(path):
        return "is a directory, not an image file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return _fault(error, is_empty=os.path.isfile(path) and os.path.getsize(path) == 0)


def _fault(error: Exception, *, is_empty: bool) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"refused, because it is too large: {error}"
    if is_empty:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image in a format that Pillow knows"
    return f"the image is damaged ({error})"
