"""OpenCLIP's architectures of SigLIP and SigLIP 2, a part of `open_clip_catalog`."""

from typing import Any

# Towers by OpenCLIP's word for the size: timm's word, and the text's width, heads and layers. The
# giant has the text tower of the size below it.
_SIZES: dict[str, tuple[str, int, int, int]] = {
    "B": ("base", 768, 12, 12),
    "L": ("large", 1024, 16, 24),
    "SO400M": ("so400m", 1152, 16, 27),
    "gopt": ("giantopt", 1152, 16, 27),
}
_EMBED_DIMS = {"B": 768, "L": 1024, "SO400M": 1152, "gopt": 1536}

# Size and patch of a vision tower, generation, and sizes of images; the first of them is not in the
# name where that is so in OpenCLIP's.
_FAMILIES = (
    ("B", 16, "SigLIP", (224, 256, 384, 512), True),
    ("L", 16, "SigLIP", (256, 384), False),
    ("SO400M", 14, "SigLIP", (224, 378, 384), True),
    ("B", 16, "SigLIP-i18n", (256,), False),
    ("SO400M", 16, "SigLIP-i18n", (256,), False),
    ("B", 32, "SigLIP2", (256,), False),
    ("B", 16, "SigLIP2", (224, 256, 384, 512), True),
    ("L", 16, "SigLIP2", (256, 384, 512), False),
    ("SO400M", 14, "SigLIP2", (224, 378), True),
    ("SO400M", 16, "SigLIP2", (256, 384, 512), False),
    ("gopt", 16, "SigLIP2", (256, 384), False),
)
_VOCABULARIES = {"SigLIP": 32000, "SigLIP-i18n": 250000, "SigLIP2": 256000}
# Weights whose repository isn't called after the model: 378 is what 27 patches of 14 cover of 384.
REPOSITORIES = {"ViT-SO400M-14-SigLIP-378": "timm/ViT-SO400M-14-SigLIP-384"}


def siglip_architectures() -> dict[str, dict[str, Any]]:
    """Returns the `model_cfg` of each SigLIP architecture by OpenCLIP's name."""
    return {
        f"ViT-{size}-{patch}-{family}{'' if is_first and n == sizes[0] else f'-{n}'}": _model(
            size, patch, family, n, is_first and n == sizes[0]
        )
        for size, patch, family, sizes, is_first in _FAMILIES
        for n in sizes
    }


def _model(size: str, patch: int, family: str, image_size: int, is_short: bool) -> dict[str, Any]:
    word, width, heads, layers = _SIZES[size]
    name = f"ViT-{size}-{patch}-{family}{'' if is_short else f'-{image_size}'}"
    text: dict[str, Any] = {
        "context_length": 64,
        "vocab_size": _VOCABULARIES[family],
        # The first generation has one tokenizer.
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP" if family == "SigLIP" else f"timm/{name}",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": width,
        "heads": heads,
        "layers": layers,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    }
    if width == 1152:
        text["mlp_ratio"] = 3.7362
    if family == "SigLIP2":
        text["act_kwargs"] = {"approximate": "tanh"}
    match name:
        case "ViT-SO400M-14-SigLIP":
            text["context_length"] = 16
        case "ViT-SO400M-16-SigLIP-i18n-256":
            del text["proj_bias"]
            text |= {"proj_type": "none", "hf_tokenizer_name": "timm/ViT-B-16-SigLIP-i18n-256"}
    return {
        "embed_dim": _EMBED_DIMS[size],
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": image_size,
            "timm_model_name": f"vit_{word}_patch{patch}_siglip_{image_size}",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": text,
    }
