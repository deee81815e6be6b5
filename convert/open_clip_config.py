"""OpenCLIP's configuration (`open_clip_config.json`) and ours, in both directions.

As in OpenCLIP, unknown keys are errors in what describes the model; in what describes the pixels
they are ignored.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from clip_jax.config import (
    Activation,
    CLIPConfig,
    ResNetConfig,
    SigLIPConfig,
    TextConfig,
    ViTConfig,
)
from clip_jax.convert import open_clip_siglip
from clip_jax.convert.archive import shown
from clip_jax.convert.deviations import deviations
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.open_clip_kept import TEXT_IGNORED, VISION_IGNORED, kept, with_kept
from clip_jax.errors import CheckpointError
from clip_jax.image_size import ImageSize, shown_size, sides_of
from clip_jax.pixel_config import MEAN, STD, PixelConfig

# Keys with their defaults.
ROOT = {
    "quick_gelu": False,
    "custom_text": False,
    "init_logit_bias": None,
    "init_logit_scale": None,
    "nonscalar_logit_scale": False,
}
TOWER = {"mlp_ratio": 4.0, "ls_init_value": None, "norm_kwargs": None, "act_kwargs": None}
VISION = {
    "image_size": 224,
    "layers": 12,
    "width": 768,
    "patch_size": 16,
    "head_width": 64,
    "no_ln_pre": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    **TOWER,
}
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "eos_id": 2,
    "proj_type": "linear",
    "proj_bias": False,
    "hf_tokenizer_name": None,
    "tokenizer_kwargs": None,
    **TOWER,
}
# Options of OpenCLIP's own tokenizer that leave its ids as they are.
TOKENIZER = {"clean": "lower", "additional_special_tokens": None, "reduction_mask": ""}
# Keys that may only be false or null, and what they would mean.
BLOCKS = "an experimental kind of residual block"
EXPERIMENTAL = dict.fromkeys(
    ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
    BLOCKS,
)
ROOT_REFUSED = {"multimodal_cfg": "a CoCa model"}
VISION_REFUSED = {
    "timm_model_name": "a vision tower of timm",
    "attentional_pool": "CoCa's attentional pooling",
    "block_type": BLOCKS,
    **EXPERIMENTAL,
}
TEXT_REFUSED = {
    "hf_model_name": "a text tower of transformers",
    "embed_cls": "CoCa's class token in the text tower",
    **EXPERIMENTAL,
}
NO_PLACE = "OpenCLIP's configuration has no place for"
POOLING = {"tok": "class", "avg": "mean"}
SUPPORTED = "OpenCLIP's own towers are supported, and timm's of SigLIP"


def from_document(
    document: Mapping[str, Any], activation: Literal["open_clip"] | None = None
) -> CLIPConfig:
    """Returns the configuration that an `open_clip_config.json` describes.

    Args:
        document: the content of the file.
        activation: "open_clip" for the activations that OpenCLIP gives a SigLIP model, instead of
            those that it was trained with.

    Raises:
        CheckpointError: a key is unknown, missing or refused, or a value is not possible; lists all
            problems.
    """
    problems: list[str] = []
    if not isinstance(document.get("model_cfg"), Mapping):
        raise_problems(["model_cfg: expected an object, the description of the model"])
    pixels = _pixels(document.get("preprocess_cfg") or {}, problems)
    root = Fields(document["model_cfg"], "model_cfg", problems)
    root.refuse(ROOT_REFUSED, SUPPORTED)
    root.check_known({*ROOT, *ROOT_REFUSED, "embed_dim", "vision_cfg", "text_cfg"})
    embed_dim = root.whole("embed_dim")
    quick = root.flag("quick_gelu", False)
    vision, text = root.inner("vision_cfg"), root.inner("text_cfg")
    tower = open_clip_siglip.tower_of(vision)
    refused = {k: v for k, v in VISION_REFUSED.items() if not (tower and k == "timm_model_name")}
    vision.refuse(refused, SUPPORTED)
    text.refuse(TEXT_REFUSED, SUPPORTED)
    if text.get("text_arch", "clip") != "clip":
        text.problem("text_arch", f"a text tower of another kind is not supported: {SUPPORTED}")
    vision.check_known({*VISION, *VISION_IGNORED, *VISION_REFUSED})
    text.check_known({*TEXT, *TEXT_IGNORED, *TEXT_REFUSED, "text_arch"})
    bias = root.number("init_logit_bias", None)
    root.flag("custom_text", False)
    root.flag("nonscalar_logit_scale", False)
    # Also after problems, to list those of the towers too.
    theirs = _text(text, quick, embed_dim)
    if tower:
        if quick:
            root.problem("quick_gelu", "no SigLIP model has it")
        return open_clip_siglip.config_of(tower, root, vision, theirs, bias, pixels, activation)
    if activation == "open_clip":
        root.problem("activation", '"open_clip" is for SigLIP, which OpenCLIP computes otherwise')
    is_resnet = isinstance(vision.get("layers"), list | tuple)
    ours = (_resnet if is_resnet else _vit)(vision, quick)
    raise_problems(problems)
    gelu: Activation = "quick_gelu" if quick else "gelu"
    options: dict[str, Any] = {"logit_bias": bias, "pixels": pixels, "open_clip": kept(document)}
    built = root.built(CLIPConfig, embed_dim, ours, theirs, gelu, **options)
    raise_problems(problems)
    return built


def to_document(config: CLIPConfig) -> dict[str, Any]:
    """Returns the `open_clip_config.json` of a configuration; inverts `from_document`.

    Raises:
        CheckpointError: OpenCLIP can't express the model; lists all reasons.
    """
    if isinstance(config, SigLIPConfig):
        raise_problems(["a SigLIP model, whose vision tower is timm's there"], NO_PLACE)
    found = deviations(config)
    if "quick_gelu" not in {config.text_activation, config.vision_activation}:
        found.pop("activations", None)
    lost = [found[name] for name in ("activations",) if name in found]
    document = _described(config)
    if (
        _tokenizer(Fields(document["model_cfg"]["text_cfg"], "text_cfg", []))
        != config.text.tokenizer
    ):  # of another library, or changed since
        lost.append(f"the options of the tokenizer {config.text.tokenizer or 'of CLIP'}")
    raise_problems(lost, NO_PLACE)
    return document


def _described(config: CLIPConfig) -> dict[str, Any]:
    quick = config.text_activation == "quick_gelu"
    model: dict[str, Any] = {"embed_dim": config.embed_dim, "quick_gelu": quick}
    if config.logit_bias is not None:
        model["init_logit_bias"] = config.logit_bias
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        model["vision_cfg"] = {
            "image_size": vision.image_size,
            "layers": list(vision.stage_depths),
            "width": vision.width,
            "patch_size": None,
            "head_width": vision.num_features // vision.num_heads,
        }
    else:
        model["vision_cfg"] = {
            "image_size": _image_size_document(vision.image_size),
            "layers": vision.num_layers,
            "width": vision.width,
            "patch_size": vision.patch_size,
            "head_width": vision.width // vision.num_heads,
            **_blocks_document(vision, config.vision_activation),
        }
        changes = {
            "no_ln_pre": not vision.has_ln_pre,
            "pool_type": {ours: name for name, ours in POOLING.items()}[vision.pooling],
            "final_ln_after_pool": vision.norm_after_pooling,
        }
        model["vision_cfg"] |= {k: v for k, v in changes.items() if v != VISION[k]}
    model["text_cfg"] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.num_heads,
        "layers": text.num_layers,
        **_blocks_document(text, config.text_activation),
    }
    changes = {
        "no_causal_mask": not text.is_causal,
        "pool_type": text.pooling,
        "eos_id": text.eos_id if text.pooling == "eos" else TEXT["eos_id"],
        "proj_type": "linear" if text.has_projection else "none",
        "proj_bias": text.has_projection_bias,
    }
    model["text_cfg"] |= {k: v for k, v in changes.items() if v != TEXT[k] or k == "eos_id"}
    if text.pooling != "eos":
        del model["text_cfg"]["eos_id"]
    document = {"model_cfg": model, "preprocess_cfg": _pixels_document(config)}
    if config.open_clip is None:
        return document
    try:
        return with_kept(document, config.open_clip)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _vit(fields: Fields, quick: bool) -> ViTConfig | None:
    width, head_width = fields.whole("width", 768), fields.whole("head_width", 64)
    if width and head_width and width % head_width:
        fields.problem("head_width", f"must divide the width, {width}. Got {head_width}")
        return None
    size, patch_size = _image_size(fields), fields.whole("patch_size", 16)
    return fields.built(
        ViTConfig,
        size,
        patch_size,
        width,
        fields.whole("layers", 12),
        width // (head_width or 1),
        has_ln_pre=not fields.flag("no_ln_pre", False),
        pooling=fields.choice("pool_type", POOLING, "tok"),
        norm_after_pooling=fields.flag("final_ln_after_pool", False),
        drops_remainder=any(side % (patch_size or 1) for side in sides_of(size)),
        **_blocks(fields, width, quick),
    )


def _resnet(fields: Fields, quick: bool) -> ResNetConfig | None:
    width, head_width = fields.whole("width", 64), fields.whole("head_width", 64)
    if head_width and (32 * width) % head_width:
        fields.problem("head_width", f"must divide 32 times the width, {width}. Got {head_width}")
        return None
    depths, size = tuple(fields["layers"]), _image_size(fields)
    if isinstance(size, tuple):
        fields.problem("image_size", f"must be a square for a ResNet. Got {shown_size(size)}")
    return fields.built(ResNetConfig, size, width, depths, 32 * width // (head_width or 1))


def _text(fields: Fields, quick: bool, embed_dim: int) -> TextConfig | None:
    width = fields.whole("width", 512)
    poolings = {name: name for name in ("argmax", "last", "first", "eos")}
    pooling = fields.choice("pool_type", poolings, "argmax")
    has_projection = fields.choice("proj_type", {"linear": True, "none": False}, "linear")
    return fields.built(
        TextConfig,
        width,
        fields.whole("layers", 12),
        fields.whole("heads", 8),
        fields.whole("context_length", 77),
        fields.whole("vocab_size", 49408),
        is_causal=not fields.flag("no_causal_mask", False),
        pooling=pooling,
        eos_id=fields.whole("eos_id", 2, least=0) if pooling == "eos" else None,
        has_projection=has_projection,
        has_projection_bias=fields.flag("proj_bias", False) and bool(has_projection),
        tokenizer=_tokenizer(fields),
        **_blocks(fields, width, quick),
    )


def _tokenizer(fields: Fields) -> str | None:
    """Returns the name of a model's tokenizer, as `TextConfig` has it; None for CLIP's."""
    return fields.text("hf_tokenizer_name", None) or _changed_tokenizer(fields)


def _changed_tokenizer(fields: Fields) -> str | None:
    """Names the tokenizer of a model whose options give other ids than CLIP's; else None."""
    options = fields.inner("tokenizer_kwargs", {})
    defaults = {**TOKENIZER, "context_length": fields.get("context_length", 77)}
    changes = {
        key: options[key]
        for key in options
        if options[key] is not None and (key not in defaults or options[key] != defaults[key])
    }
    return f"open_clip with {shown(json.dumps(changes, default=repr))}" if changes else None


def _blocks(fields: Fields, width: int, quick: bool) -> dict[str, Any]:
    """Returns the keyword arguments that both kinds of transformers have."""
    norm, act = fields.inner("norm_kwargs", {}), fields.inner("act_kwargs", {})
    norm.check_known({"eps"})
    act.check_known({"approximate"})
    tanh = act.choice("approximate", {"tanh": True, "none": False}, "none")
    if act and quick:
        fields.problem("act_kwargs", "must be null with quick_gelu, which has no variants")
    hidden = int(width * (fields.number("mlp_ratio", 4.0) or 0))  # truncated
    if hidden < 1 and width:
        fields.problem("mlp_ratio", f"must be positive. Got {fields['mlp_ratio']}")
    return {
        "activation": "gelu_tanh" if tanh and not quick else None,
        "norm_epsilon": norm.number("eps", 1e-5),
        "mlp_width": None if hidden in (0, 4 * width) else hidden,
        "layer_scale": fields.number("ls_init_value", None),
    }


def _blocks_document(tower: ViTConfig | TextConfig, activation: Activation) -> dict[str, Any]:
    hidden = tower.mlp_width or 4 * tower.width
    ratio = hidden / tower.width
    if int(tower.width * ratio) != hidden:  # truncated, so rounding down loses one
        ratio = math.nextafter(ratio, math.inf)
    changes = {
        "mlp_ratio": ratio,
        "ls_init_value": tower.layer_scale,
        "norm_kwargs": None if tower.norm_epsilon == 1e-5 else {"eps": tower.norm_epsilon},
        "act_kwargs": {"approximate": "tanh"} if activation == "gelu_tanh" else None,
    }
    return {name: value for name, value in changes.items() if value != TOWER[name]}


def _image_size(fields: Fields) -> ImageSize:
    """Returns the size as one number, or as a height and a width if they differ."""
    size = fields.get("image_size", 224)
    if not isinstance(size, list | tuple) or len(size) != 2:
        return fields.whole("image_size", 224)
    height, width = (
        Fields({"image_size": side}, fields.where, fields.problems).whole("image_size")
        for side in size
    )
    return height if height == width else (height, width)


def _image_size_document(size: ImageSize) -> int | list[int]:
    return list(size) if isinstance(size, tuple) else size


def _pixels(document: Any, problems: list[str]) -> PixelConfig:
    if not isinstance(document, Mapping):
        problems.append("preprocess_cfg: expected an object")
        return PixelConfig()
    fields = Fields(document, "preprocess_cfg", problems)
    if fields.get("resize_mode") == "longest" and fields.get("fill_color"):
        fields.problem("fill_color", f"expected 0, a black margin. Got {fields['fill_color']!r}")
    if (mode := fields.text("mode", "RGB")) != "RGB":
        fields.problem("mode", f"expected RGB. Got {mode!r}")
    resizes = {name: name for name in ("shortest", "squash", "longest")}
    filters = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
    return (
        fields.built(
            PixelConfig,
            mean=fields.color("mean", MEAN),
            std=fields.color("std", STD),
            interpolation=fields.choice("interpolation", filters, "bicubic"),
            resize=fields.choice("resize_mode", resizes, "shortest"),
        )
        or PixelConfig()
    )


def _pixels_document(config: CLIPConfig) -> dict[str, Any]:
    pixels = config.pixels
    return {
        "size": _image_size_document(config.vision.image_size),
        "mode": "RGB",
        "mean": list(pixels.mean),
        "std": list(pixels.std),
        "interpolation": pixels.interpolation,
        "resize_mode": pixels.resize,
        "fill_color": 0,
    }
