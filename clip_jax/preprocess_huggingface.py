"""PIL image to model input as transformers does it, equal to its PIL image processors to the bit.

CLIP's weights were trained on OpenAI's pixels, which `clip_jax.preprocess` makes. Whoever has used
a folder with transformers has had these, which differ: images become RGB before they are resized,
with what is transparent on white; the crop begins at another pixel for some sizes; and an image
that is smaller than the crop gets a black margin.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_jax.bands import in_bands
from clip_jax.bombs import check_area
from clip_jax.channels import UNCOVERED
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.huggingface_pixels import PREPROCESSOR, PROCESSOR, from_document
from clip_jax.convert.json_file import read_json
from clip_jax.geometry import Geometry, covering
from clip_jax.image_size import ImageSize, as_image_size, shown_size, sides_of
from clip_jax.picture_faults import check_image, told_faults
from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess
from clip_jax.reduced import extent, full_size
from clip_jax.resample import shortest_to


@dataclasses.dataclass(frozen=True)
class HuggingFacePreprocess(Preprocess):
    """Resizes, crops and normalises images as transformers' `CLIPImageProcessorPil` does.

    Or as `SiglipImageProcessorPil`, which doesn't crop.

    Attributes:
        image_size: the side of the square in pixels, or the height and the width.
        config: filter, way of resizing, mean and standard deviation.
        resized: what the shorter side becomes before the crop, or (height, width) for "squash";
            `image_size` by default.
        fit: as for `Preprocess`; None for transformers' way.
        background: as for `Preprocess`; None for white.
        scale_16_bit: as for `Preprocess`.
        decode: as for `Preprocess`.
    """

    resized: int | tuple[int, int] | None = None

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "n m 3"]:
        """Returns the cropped image before normalisation, which models accept too; raises alike."""
        check_image(image)
        with told_faults(image):
            rgb, (n, m) = _on_white(self._prepared(image)), sides_of(self.image_size)
            if self.fit is not None:
                return np.array(self._cropped(rgb))
            place = self.geometry(*full_size(rgb))
            check_area(rgb, place.width * max(rgb.height, place.height))
            resample = Image.Resampling[self.config.interpolation.upper()]
            resized = rgb.resize(place.size, resample, (0, 0, *extent(rgb)))
            # Pillow's crop is black outside of the image.
            box = (place.left, place.top, place.left + m, place.top + n)
            return np.array(resized.crop(box))

    def geometry(self, width: int, height: int) -> Geometry:
        """As of any other preprocessing; but crops begin at a pixel that is rounded down."""
        if self.fit is not None:
            return super().geometry(width, height)
        n, m = sides_of(self.image_size)
        size = self._size(width, height)
        return Geometry(*size, (size[0] - m) // 2, (size[1] - n) // 2)  # also below zero

    def losses(self, image: Image.Image) -> tuple[str, ...]:
        """As of any other preprocessing; but most transparent parts are on white."""
        found = super().losses(image)
        return tuple(kind for kind in found if kind != UNCOVERED or not _is_on_white(image))

    def _margin_color(self) -> tuple[int, ...]:
        return (0, 0, 0) if self.fit is None else super()._margin_color()

    def _size(self, width: int, height: int) -> tuple[int, int]:
        n, m = sides_of(self.image_size)
        if self.config.resize == "shortest":
            if isinstance(self.resized, int):
                return shortest_to(self.resized, width, height)
            if n != m:
                return covering(width, height, self.image_size)
            return shortest_to(n, width, height)
        if isinstance(self.resized, tuple):
            return self.resized[1], self.resized[0]
        return m, n

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], image_size: int, default: PixelConfig | None = None
    ) -> "HuggingFacePreprocess":
        """Reads the preprocessing from a folder of transformers.

        Args:
            folder: has `preprocessor_config.json`, or `processor_config.json` of transformers 5;
                with neither, transformers' defaults are taken.
            image_size: the size of the model's images.
            default: what holds where the file doesn't say; OpenAI's way if not given.

        Raises:
            CheckpointError: the file can't be read, says something that isn't supported, or makes
                images of another size; lists all problems.
        """
        document, where = _document(Path(folder))
        problems: list[str] = []
        fields = Fields(document, where, problems)
        crop = _sides(fields, "crop_size", image_size)
        resized = fields.get("size", image_size)
        if isinstance(resized, Mapping) and resized.keys() == {"shortest_edge"}:
            resized = resized["shortest_edge"]
        resized = _sides(fields, "size", image_size, resized)
        config = from_document(document, where, default)
        edge = resized[0] if config.resize == "shortest" else resized
        # SigLIP's image processor has no crop.
        crops = not str(document.get("image_processor_type")).startswith("Siglip")
        if not fields.flag("do_center_crop", crops):
            crop = resized
            if config.resize == "shortest":
                fields.problem("do_center_crop", "without it, images wouldn't be squares")
        if not problems and crop != (image_size, image_size):
            problems.append(
                f"{where}: makes images of {crop[0]} x {crop[1]} pixels, expected the model's "
                f"image_size, {image_size}"
            )
        raise_problems(problems, f"{folder}")
        return cls(image_size, config, edge)

    def of_size(self, image_size: ImageSize) -> "HuggingFacePreprocess":
        """Returns the same preprocessing for images of another size.

        Raises:
            ValueError: images are resized to more than the crop, and no file says how much more it
                would be for the other size.
        """
        if as_image_size(image_size) == self.image_size:
            return self
        if self.resized not in (None, self.image_size, sides_of(self.image_size)):
            raise ValueError(
                f"this folder has images resized to {self.resized} and cropped to "
                f"{shown_size(self.image_size)}, which doesn't say how those of "
                f"{shown_size(image_size)} are made: take "
                f'preprocessing="openai", or leave image_size out.'
            )
        return HuggingFacePreprocess(image_size, self.config)


def _document(folder: Path) -> tuple[dict[str, Any], str]:
    for name in (PREPROCESSOR, PROCESSOR):
        try:
            document = read_json(folder / name)
        except FileNotFoundError:
            continue
        if name == PREPROCESSOR:
            return document, name
        if isinstance(inner := document.get("image_processor"), dict):
            return inner, f"{name}.image_processor"
    return {}, PREPROCESSOR


def _sides(fields: Fields, name: str, default: int, value: Any = None) -> tuple[int, int]:
    """Returns the height and width that a field says, as one number or as two."""
    value = fields.get(name, default) if value is None else value
    both = isinstance(value, Mapping) and value.keys() == {"height", "width"}
    sides: tuple[Any, Any] = (value["height"], value["width"]) if both else (value, value)
    if all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 16 for n in sides):
        return sides
    fields.problem(name, "expected positive whole numbers, one, or a height and a width")
    return default, default


def _on_white(image: Image.Image) -> Image.Image:
    """Returns an image in RGB, with white where it is transparent."""
    if _is_on_white(image):
        return in_bands(image, "RGB", _part_on_white)
    return image.convert("RGB")


def _is_on_white(image: Image.Image) -> bool:
    """Whether transformers puts an image on white: not by a palette's own alpha."""
    return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info


def _part_on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
