"""PIL image to model input, equal to torchvision's pipelines of OpenAI and OpenCLIP to the bit."""

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from clip_jax.bombs import MOST_PIXELS, TooThin, check_area, check_bomb
from clip_jax.channels import color_of, covered, losses_of, mark_frames, scaled
from clip_jax.errors import Unreachable, exhausted
from clip_jax.geometry import Geometry, geometry
from clip_jax.image_size import ImageSize, as_image_size, sides_of
from clip_jax.naming import reading
from clip_jax.picture_faults import check_image, fault, reason, told_faults
from clip_jax.pixel_config import PixelConfig, Resize
from clip_jax.reduced import extent, full_size, reduce
from clip_jax.resample import (
    EIGHT_BITS,
    NEAREST,
    nearest_middle,
    resize_middle,
)
from clip_jax.storage import check_picture_size, check_regular

if TYPE_CHECKING:
    from jaxtyping import Array  # imports JAX, which takes a second

# Accepted formats, whatever the file's name: those that Pillow decodes quickly by itself. Others
# start programs (EPS: Ghostscript), can hold the GIL for as long as a file of a few kilobytes
# specifies (FITS), have no signature, so that any bytes can pass for one (TGA), or are rare.
# HEIF, of phones, needs a plug-in, which is loaded where it is installed.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF", "JPEG2000", "ICO"),
    "HEIF",
)
# What a picture that isn't square becomes, and how `PixelConfig` calls that.
Fit = Literal["crop", "pad", "squash"]
FITS: dict[Fit, Resize] = {"crop": "shortest", "pad": "longest", "squash": "squash"}
# How JPEG files are decoded; see `clip_jax.reduced`.
Decode = Literal["exact", "fast"]
# Above this aspect ratio, only the part that the crop keeps is resized.
THIN = 32


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes, crops and normalises images for a model of one image size.

    By default the shorter side is resized to `image_size` (bicubic, in the image's own mode). The
    middle is cropped to a square and converted to RGB. EXIF orientation is not applied, as in the
    reference. Other models' images are made in another way, which is in their configuration:
    `Preprocess(config.vision.image_size, config.pixels)`.

    For images that aren't squares, the image is resized so that it just covers the rectangle.

    Attributes:
        image_size: the side of the square in pixels, or the height and the width.
        config: filter, way of resizing, mean and standard deviation.
        fit: "crop", the middle of the picture; "pad", all of it, with margins that are black or of
            the background's colour; "squash", all of it, whatever that does to its aspect ratio;
            None for the model's own way, in `config`.
        background: a colour, such as "white" or "#7f7f7f", to put transparent parts on; None to
            ignore transparency, as in the reference.
        scale_16_bit: whether to divide grey pictures of 16 bits by 257; else values above 255 are
            white, as in the reference.
        decode: "exact"; or "fast", for JPEG files to be decoded at the least of the scales 1/8,
            1/4, 1/2 and 1 that leaves twice as many pixels a side as the picture is resized to.
            It tells `open_image` and the jobs; an image that is open already is taken as it is.

    Raises:
        ValueError: `image_size` is no positive integer, or there is no such fit, colour or way of
            decoding.

    Example:
        >>> Preprocess(224)(Image.new("L", (640, 480))).shape
        (224, 224, 3)
        >>> Preprocess(4, fit="pad").pixels(Image.new("L", (8, 4), 9))[:, 0, 0].tolist()
        [0, 9, 9, 0]
    """

    image_size: ImageSize
    config: PixelConfig = PixelConfig()
    _: dataclasses.KW_ONLY
    # Not in the repr, which is part of what some embedding jobs are.
    fit: Fit | None = dataclasses.field(default=None, repr=False)
    background: str | None = dataclasses.field(default=None, repr=False)
    scale_16_bit: bool = dataclasses.field(default=False, repr=False)
    decode: Decode = dataclasses.field(default="exact", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"fit must be {', '.join(map(repr, FITS))} or None. Got {self.fit!r}")
        if self.background is not None:
            color_of(self.background)
        if self.decode not in get_args(Decode):
            raise ValueError(f"decode must be 'exact' or 'fast'. Got {self.decode!r}")

    def __call__(
        self, image: Image.Image | list[Image.Image] | tuple[Image.Image, ...]
    ) -> Float32[np.ndarray, "*b n m 3"]:
        """Returns the normalised image; a batch of them for a list.

        Raises:
            TypeError: not a PIL image.
            ValueError: no pixels, or a mode that Pillow can't resize or convert to RGB.
            OSError: there is not enough memory.
        """
        n, m = sides_of(self.image_size)
        if isinstance(image, (list, tuple)):
            batch = np.empty((len(image), n, m, 3), np.float32)
            for row, one in zip(batch, image, strict=True):
                row[:] = self(one)
            return batch
        # In place and in the reference's order; NumPy is slow over a last axis of length 3.
        x = self.pixels(image).reshape(n, 3 * m).astype(np.float32)
        x /= np.float32(255)
        x -= np.tile(np.array(self.config.mean, np.float32), m)
        x /= np.tile(np.array(self.config.std, np.float32), m)
        return x.reshape(n, m, 3)

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "n m 3"]:
        """Returns the cropped image before normalisation, which models accept too; raises alike."""
        check_image(image)
        with told_faults(image):
            cropped = self._cropped(self._prepared(image))
            cropped.info.pop("transparency", None)  # has no effect on RGB, but Pillow may warn
            return np.array(cropped.convert("RGB"))  # a copy, or it would be read-only

    def losses(self, image: Image.Image) -> tuple[str, ...]:
        """Returns what of a picture doesn't reach the pixels; see `clip_jax.channels`."""
        return losses_of(image, scales=self.scale_16_bit, covers=self.background is not None)

    @property
    def resize(self) -> Resize:
        """How pictures get the model's size: as `fit` says, else in the model's own way."""
        return FITS[self.fit] if self.fit else self.config.resize

    def geometry(self, width: int, height: int) -> Geometry:
        """Returns what a picture of this width and height is resized to, and what is kept of it."""
        return geometry(width, height, self.image_size, self.resize)

    def on_device(
        self, height: int, width: int
    ) -> Callable[["UInt8[Array, 'b h w 3']"], "UInt8[Array, 'b n m 3']"]:
        """Returns a function that makes `pixels` of RGB frames on the device, equal to the bit.

        Called inside `jax.jit` together with a model, which takes its result, it makes resizing,
        normalising and encoding one program. Each size of frames is another program.

        Args:
            height: the frames' height in pixels.
            width: their width.

        Raises:
            ValueError: a side is less than 1, or the frames are so long and thin that a side would
                vanish.

        Example:
            >>> frames = np.zeros((2, 480, 640, 3), np.uint8)
            >>> Preprocess(32).on_device(480, 640)(frames).shape
            (2, 32, 32, 3)
        """
        if min(height, width) < 1:
            raise ValueError(f"frames must have at least one pixel. Got {height} x {width} pixels.")
        from clip_jax.frames import frame_resizer  # likewise

        return frame_resizer(
            (height, width),
            sides_of(self.image_size),
            self.geometry(width, height),
            Image.Resampling[self.config.interpolation.upper()],
            self._margin_color(),
        )

    def _prepared(self, image: Image.Image) -> Image.Image:
        """Returns the picture on its background, and with 8 bits, where that is asked for."""
        if self.scale_16_bit:
            image = scaled(image)
        if self.background is not None:
            image = covered(image, self.background)
        return image

    def _cropped(self, image: Image.Image) -> Image.Image:
        """Returns the resized picture, in its own mode and of the model's size."""
        height, width = sides_of(self.image_size)
        resample = Image.Resampling[self.config.interpolation.upper()]
        place, box = self.geometry(*full_size(image)), (0, 0, *extent(image))
        size = place.size
        if self.resize == "squash":
            check_area(image, max(height, width) * max(image.size))
            return image.resize(size, resample, box)
        if self.resize == "longest":
            if 0 in size:
                raise TooThin(image)
            check_area(image, place.width * image.height)
            if self.background is None and self.fit is None:
                return _padded(image.resize(size, resample, box), (width, height), 0)
            image.info.pop("transparency", None)
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            resized = rgb.resize(size, resample, box)
            return _padded(resized, (width, height), self._margin_color())
        middle = (place.left, place.top, place.left + width, place.top + height)
        if height != width:
            check_area(image, place.width * max(image.height, place.height))
            return image.resize(size, resample, box).crop(middle)
        n = height
        if max(image.size) > THIN * min(image.size) and min(image.size) < n:
            if image.mode in EIGHT_BITS:
                return resize_middle(image, n, max(size), resample)
            if image.mode in NEAREST and n * max(image.size) <= MOST_PIXELS:
                return nearest_middle(image, n, max(size))
            check_area(image, n * max(size))
        return image.resize(size, resample, box).crop(middle)

    def _margin_color(self) -> tuple[int, ...]:
        return color_of(self.background or "black")


def _padded(image: Image.Image, size: tuple[int, int], color: int | tuple[int, ...]) -> Image.Image:
    """Returns the picture in the middle of a rectangle."""
    width, height = size
    left, top = (width - image.width) // 2, (height - image.height) // 2
    margins = (left, top, width - image.width - left, height - image.height - top)
    padded = ImageOps.expand(image, margins, color)
    if image.mode == "P" and (palette := image.getpalette()):
        padded.putpalette(palette)
    return padded


def open_image(
    path: str | os.PathLike[str],
    formats: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
) -> Image.Image:
    """Opens an image file and reads all of it, so that damage is found here.

    Pillow's guard against decompression bombs stays on.

    Args:
        path: the file.
        formats: the accepted formats by Pillow's names; `FORMATS` by default.
        preprocess: what the image is for; with `decode="fast"`, a JPEG that is much larger than
            it needs comes out smaller.

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
        with reading(os.fspath(path)):
            return _loaded(path, known, preprocess)
    except (FileNotFoundError, Unreachable):
        raise
    except Exception as error:  # decoders raise errors of any kind, SyntaxError included
        raise ValueError(f"{os.fspath(path)}: {reason(path, error, FORMATS)}") from error


def decode_image(
    data: bytes,
    formats: Sequence[str] | None = None,
    *,
    preprocess: Preprocess | None = None,
    reduced_to: tuple[int, int] | None = None,
) -> Image.Image:
    """Decodes the bytes of an image file completely, as `open_image`.

    Args:
        data: the bytes.
        formats: as for `open_image`.
        preprocess: as for `open_image`.
        reduced_to: a size for which a JPEG may be decoded at an eighth, a quarter or half of its
            own, as long as it is no smaller than this; much quicker, for thumbnails.

    Raises:
        ValueError: it is not an image, damaged or unreasonably large; the message says why.
        OSError: the machine has run out of memory.
    """
    known = known_formats(formats)
    try:
        return _loaded(io.BytesIO(data), known, preprocess, reduced_to)
    except Unreachable:
        raise
    except Exception as error:  # as above
        raise ValueError(fault(error, data[:16], FORMATS)) from error


def known_formats(formats: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the accepted formats, in upper case.

    Args:
        formats: Pillow's names; by default those of `FORMATS` that this Pillow has.

    Raises:
        ValueError: Pillow has no such format; the message lists those it has.
    """
    return _known(None if formats is None else tuple(name.upper() for name in formats))


def is_picture_file(text: str) -> bool:
    """Whether a text is the path of a picture that is there."""
    ending = os.path.splitext(text)[1].lower()
    return bool(ending) and os.path.isfile(text) and ending in Image.registered_extensions()


def suffixes_of(formats: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the usual suffixes, without dots, of files in these formats; none for None."""
    known = set(known_formats(formats) if formats else ())
    endings = Image.registered_extensions().items()
    return tuple(ending.removeprefix(".") for ending, name in endings if name in known)


@functools.cache
def _known(formats: tuple[str, ...] | None) -> tuple[str, ...]:
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    if formats is None:
        return tuple(name for name in FORMATS if name in Image.OPEN)
    if unknown := [name for name in formats if name not in Image.OPEN]:
        raise ValueError(
            f"Pillow opens no format {' and no format '.join(map(repr, unknown))} here; it knows "
            f"{', '.join(sorted(Image.OPEN))}"
        )
    return formats


def _loaded(
    file: str | os.PathLike[str] | io.BytesIO,
    formats: tuple[str, ...],
    preprocess: Preprocess | None,
    reduced_to: tuple[int, int] | None = None,
) -> Image.Image:
    try:
        with Image.open(file, formats=formats) as image:
            check_bomb(image)
            if reduced_to is not None:
                image.draft(None, reduced_to)
            if preprocess is not None and preprocess.decode == "fast":
                reduce(image, preprocess.geometry)
            mark_frames(image)
            image.load()
            return image
    except Exception as error:
        if out := exhausted(error):
            raise out from error
        raise
