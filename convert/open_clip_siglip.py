"""SigLIP as OpenCLIP describes it: its own text tower beside a vision tower that timm names.

timm's name says the size of the tower, and also which GELU it computes, which isn't always the one
that the weights were trained with: all were trained with the tanh form.
"""

import dataclasses
import re
from typing import Literal

from clip_jax.config import Activation, SigLIPConfig, TextConfig, ViTConfig
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.pixel_config import PixelConfig

NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip_(gap_)?([0-9]{2,4})")
# Width, layers, heads and the MLPs' width of the towers by timm's word for the size.
SIZES = {
    "base": (768, 12, 12, None),
    "large": (1024, 24, 16, None),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, None),
}
# Towers that timm computes as they were trained; all others with the exact GELU.
AS_TRAINED = re.compile(
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_|vit_large_patch16_siglip_512"
)


def tower_of(vision: Fields) -> re.Match[str] | None:
    """Returns the match of timm's name of a SigLIP tower; None for other towers."""
    name = vision.get("timm_model_name")
    return NAME.match(name) if isinstance(name, str) else None


def config_of(
    tower: re.Match[str],
    root: Fields,
    vision: Fields,
    text: TextConfig | None,
    bias: float | None,
    pixels: PixelConfig,
    activation: Literal["open_clip"] | None,
) -> SigLIPConfig:
    """Returns the configuration of a SigLIP model of OpenCLIP's.

    Args:
        tower: what `tower_of` has returned.
        root: the `model_cfg`.
        vision: its `vision_cfg`.
        text: the text tower.
        bias: the initial bias of the logits.
        pixels: how images become pixels.
        activation: "open_clip" for the GELUs that OpenCLIP computes; None for the tanh form, with
            which all these weights were trained.

    Raises:
        CheckpointError: values are not possible or not supported; lists all problems.
    """
    name = vision["timm_model_name"]
    width, layers, heads, hidden = SIZES[tower[1]]
    if tower[3] or vision.get("timm_pool", "map") != "map":
        vision.problem("timm_pool", f"{name} without attention pooling (map) is not supported")
    if vision.get("timm_proj", "none") not in ("none", None, ""):
        vision.problem("timm_proj", "a projection after the pooling is not supported")
    if bias is None:
        root.problem("init_logit_bias", "missing, expected a number: all SigLIP models have a bias")
    of_text = of_vision = "gelu_tanh"
    if activation == "open_clip":
        of_vision: Activation = "gelu_tanh" if AS_TRAINED.match(name) else "gelu"
        of_text: Activation = (text.activation if text else None) or "gelu"
    config = root.built(
        ViTConfig,
        vision.whole("image_size", int(tower[4])),
        int(tower[2]),
        width,
        layers,
        heads,
        has_ln_pre=False,
        pooling="attention",
        norm_epsilon=1e-6,
        mlp_width=hidden,
    )
    raise_problems(root.problems)
    assert text is not None
    own = None if of_text == of_vision else of_text
    built = root.built(
        SigLIPConfig,
        root.whole("embed_dim"),
        config,
        dataclasses.replace(text, activation=own),
        of_vision,
        logit_bias=bias,
        pixels=pixels,
    )
    raise_problems(root.problems)
    return built
