"""How the pixels of a model's training images were made."""

import dataclasses
from typing import Literal

from clip_jax.config_fields import Color, check_fields

Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["shortest", "squash", "longest"]

# Statistics of OpenAI's training images: red, green, blue, on the scale 0 to 1.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Mean and standard deviation that bring SigLIP's pixels to the scale -1 to 1.
HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How the pixels of the training images were made.

    Attributes:
        mean: subtracted from red, green and blue on the scale 0 to 1.
        std: what the differences are divided by.
        interpolation: the filter for resizing.
        resize: whether the shorter side is resized to the image size, and the middle cropped
            ("shortest"); both sides, whatever their ratio ("squash"); or the longer side, with a
            margin beside it ("longest").
    """

    mean: Color = MEAN
    std: Color = STD
    interpolation: Interpolation = "bicubic"
    resize: Resize = "shortest"

    def __post_init__(self):
        check_fields(self)
