"""How a Hugging Face folder says that images become pixels, and how it is said to one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.config import CLIPConfig
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.json_file import read_json
from clip_jax.errors import CheckpointError
from clip_jax.pixel_config import PixelConfig

PREPROCESSOR = "preprocessor_config.json"
# What transformers 5 writes instead, with the same keys below `image_processor`.
PROCESSOR = "processor_config.json"
INTERPOLATIONS = {3: "bicubic", 2: "bilinear"}  # Pillow's numbers
NUMBERS = {name: number for number, name in INTERPOLATIONS.items()}


def read_pixels(folder: Path, default: PixelConfig | None = None) -> PixelConfig:
    """Returns how the images of a folder's model become pixels.

    Args:
        folder: the folder.
        default: what holds where it doesn't say; OpenAI's way if not given.

    Raises:
        CheckpointError: it is said in a way that isn't supported, or in two that contradict each
            other; lists all problems.
    """
    found: dict[str, PixelConfig] = {}
    for name in (PREPROCESSOR, PROCESSOR):
        try:
            document = read_json(folder / name)
        except FileNotFoundError:
            continue
        if name == PREPROCESSOR:
            found[name] = from_document(document, name, default)
        elif "image_processor" in document:
            where = f"{name}.image_processor"
            found[name] = from_document(document["image_processor"], where, default)
    if len(set(found.values())) > 1:
        one, other = (dataclasses.asdict(pixels) for pixels in found.values())
        told = "; ".join(
            f"{name}: {value} and {other[name]}"
            for name, value in one.items()
            if value != other[name]
        )
        raise CheckpointError(
            f"{PREPROCESSOR} and {PROCESSOR} say different things about the pixels ({told}): "
            f"remove the one that is wrong"
        )
    return next(iter(found.values()), default or PixelConfig())


def from_document(document: Any, where: str, default: PixelConfig | None = None) -> PixelConfig:
    """Returns what the settings of an image processor say.

    Raises:
        CheckpointError: they can't be said in our terms; lists all problems.
    """
    problems: list[str] = []
    default = default or PixelConfig()
    fields = Fields(document, where, problems)
    for name in ("do_resize", "do_rescale"):
        if not fields.flag(name, True):
            fields.problem(name, "images that are not resized and scaled are not supported")
    factor = fields.number("rescale_factor", 1 / 255) or 0.0
    if abs(factor * 255 - 1) > 1e-6:
        fields.problem("rescale_factor", f"expected 1/255. Got {factor}")
    number = fields.whole("resample", NUMBERS[default.interpolation], least=0)
    if number not in INTERPOLATIONS:
        fields.problem("resample", f"expected 3 (bicubic) or 2 (bilinear). Got {number}")
    normalizes = fields.flag("do_normalize", True)
    mean = fields.color("image_mean", default.mean) if normalizes else (0.0, 0.0, 0.0)
    std = fields.color("image_std", default.std) if normalizes else (1.0, 1.0, 1.0)
    pixels = fields.built(
        PixelConfig,
        mean=mean,
        std=std,
        interpolation=INTERPOLATIONS.get(number),
        resize=_resize(fields, default),
    )
    raise_problems(problems)
    return pixels


def to_document(config: CLIPConfig) -> dict[str, Any]:
    """Returns the `preprocessor_config.json` of a model."""
    pixels, n = config.pixels, config.vision.image_size
    squash = pixels.resize == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": n, "width": n} if squash else {"shortest_edge": n},
        "resample": NUMBERS[pixels.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": n, "width": n},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


def siglip_to_document(config: CLIPConfig) -> dict[str, Any]:
    """Returns the `preprocessor_config.json` of a SigLIP model, whose images are not cropped."""
    document = to_document(config)
    kept = {k: v for k, v in document.items() if k not in ("do_center_crop", "crop_size")}
    return {**kept, "image_processor_type": "SiglipImageProcessor"}


def _resize(fields: Fields, default: PixelConfig) -> str:
    size = fields.get("size")
    if size is None:
        return default.resize
    if isinstance(size, Mapping) and size.keys() == {"height", "width"}:
        return "squash"
    if not isinstance(size, int):
        if not isinstance(size, Mapping) or size.keys() != {"shortest_edge"}:
            fields.problem("size", "expected a number, shortest_edge, or height and width")
    return "shortest"
