"""OpenCLIP's architectures: `ViT-H-14` and the numbers that it stands for.

The facts are those of open_clip 3.3's own tables; a test compares all of them, so that a new
release shows.
"""

import functools
from typing import Any

from clip_jax.siglip_catalog import siglip_architectures

TWIN = "-quickgelu"  # the name of an architecture that says its activation


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """Returns the `model_cfg` of each architecture by OpenCLIP's name; don't change them."""
    found = {
        name: _model(embed_dim, _TEXTS[text], image_size=size, layers=layers, width=width, **others)
        for name, (embed_dim, size, layers, width, others, text) in _ARCHITECTURES.items()
    }
    for base in ("ViT-L-14", "ViT-H-14", "ViT-bigG-14"):
        found[f"{base}-CLIPA"] = _with(found[base], _CLIPA_VISION, _CLIPA_TEXT)
        found[f"{base}-CLIPA-336"] = _with(
            found[base], {**_CLIPA_VISION, "image_size": 336}, _CLIPA_TEXT
        )
    for base in ("ViT-H-14", "ViT-bigG-14"):
        found[f"{base}-worldwide"] = _with(found[base], {}, _XLM_V)
        found[f"{base}-worldwide-378"] = _with(found[base], {"image_size": 378}, _XLM_V)
    found["ViT-L-14-worldwide"] = _with(found["ViT-L-14"], {}, _MT5)
    found |= siglip_architectures()
    return found | {name + TWIN: {**found[name], "quick_gelu": True} for name in _TWINS}


def _model(embed_dim: int, text: tuple[int, int, int], **vision: Any) -> dict[str, Any]:
    width, heads, layers = text
    lengths = {"context_length": 77, "vocab_size": 49408}
    return {
        "embed_dim": embed_dim,
        "vision_cfg": vision,
        "text_cfg": {**lengths, "width": width, "heads": heads, "layers": layers},
    }


def _with(model: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {
        **model,
        "vision_cfg": {**model["vision_cfg"], **vision},
        "text_cfg": {**model["text_cfg"], **text},
    }


# Width, heads and layers of the text towers.
_TEXTS = {
    "S-alt": (256, 4, 10),
    "S": (384, 6, 12),
    "B": (512, 8, 12),
    "plus": (640, 10, 12),
    "L": (768, 12, 12),
    "H": (1024, 16, 24),
    "x64": (1024, 16, 12),
    "bigG": (1280, 20, 32),
    "e": (1280, 20, 36),
}

_P32, _P16, _P14 = {"patch_size": 32}, {"patch_size": 16}, {"patch_size": 14}
_H16, _H14 = {"head_width": 80, "patch_size": 16}, {"head_width": 80, "patch_size": 14}
_G14 = {"head_width": 88, "mlp_ratio": 4.3637, "patch_size": 14}
_BIGG14 = {"head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
_E14 = {"head_width": 112, "mlp_ratio": 8.5715, "patch_size": 14}
_NO_PATCH = {"patch_size": None}

# Embedding size, image size, layers, width, other numbers of the vision tower, and text tower.
_ARCHITECTURES: dict[str, tuple[int, int, int | list[int], int, dict[str, Any], str]] = {
    "RN50": (1024, 224, [3, 4, 6, 3], 64, _NO_PATCH, "B"),
    "RN101": (512, 224, [3, 4, 23, 3], 64, _NO_PATCH, "B"),
    "RN50x4": (640, 288, [4, 6, 10, 6], 80, _NO_PATCH, "plus"),
    "RN50x16": (768, 384, [6, 8, 18, 8], 96, _NO_PATCH, "L"),
    "RN50x64": (1024, 448, [3, 15, 36, 10], 128, _NO_PATCH, "x64"),
    "ViT-S-32": (384, 224, 12, 384, _P32, "S"),
    "ViT-S-16": (384, 224, 12, 384, _P16, "S"),
    "ViT-S-32-alt": (256, 224, 12, 384, _P32, "S-alt"),
    "ViT-S-16-alt": (256, 224, 12, 384, _P16, "S-alt"),
    "ViT-M-32": (512, 224, 12, 512, _P32, "B"),
    "ViT-M-16": (512, 224, 12, 512, _P16, "B"),
    "ViT-M-32-alt": (384, 224, 12, 512, _P32, "S"),
    "ViT-M-16-alt": (384, 224, 12, 512, {"patch_size": 16, "ls_init_value": 1e-4}, "S"),
    "ViT-B-32": (512, 224, 12, 768, _P32, "B"),
    "ViT-B-32-256": (512, 256, 12, 768, _P32, "B"),
    "ViT-B-32-plus-256": (640, 256, 12, 896, _P32, "plus"),
    "ViT-B-16": (512, 224, 12, 768, _P16, "B"),
    "ViT-B-16-plus": (640, 224, 12, 896, _P16, "plus"),
    "ViT-B-16-plus-240": (640, 240, 12, 896, _P16, "plus"),
    "ViT-L-16": (768, 224, 24, 1024, _P16, "L"),
    "ViT-L-16-320": (768, 320, 24, 1024, _P16, "L"),
    "ViT-L-14": (768, 224, 24, 1024, _P14, "L"),
    "ViT-L-14-280": (768, 280, 24, 1024, _P14, "L"),
    "ViT-L-14-336": (768, 336, 24, 1024, _P14, "L"),
    "ViT-H-16": (1024, 224, 32, 1280, _H16, "H"),
    "ViT-H-14": (1024, 224, 32, 1280, _H14, "H"),
    "ViT-H-14-378": (1024, 378, 32, 1280, _H14, "H"),
    "ViT-g-14": (1024, 224, 40, 1408, _G14, "H"),
    "ViT-bigG-14": (1280, 224, 48, 1664, _BIGG14, "bigG"),
    "ViT-e-14": (1280, 224, 56, 1792, _E14, "e"),
}

_CLIPA_VISION = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
_CLIPA_TEXT = {
    "context_length": 32,
    "vocab_size": 32000,
    "hf_tokenizer_name": "bert-base-uncased",
    "tokenizer_kwargs": {"strip_sep_token": True},
    "pool_type": "last",
    "no_causal_mask": True,
}
_XLM_V = {
    "hf_tokenizer_name": "facebook/xlm-v-base",
    "pool_type": "eos",
    "eos_id": 2,
    "vocab_size": 901629,
}
_MT5 = {
    "hf_tokenizer_name": "google/mt5-base",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "pool_type": "eos",
    "eos_id": 1,
    "vocab_size": 250100,
}

_TWINS = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14"),
    *("ViT-L-14-336", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14"),
    *("ViT-L-14-worldwide", "ViT-H-14-worldwide"),
)
