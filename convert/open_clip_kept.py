"""What OpenCLIP's configuration says beside the model: kept as text, to be written back.

Options of another library's tokenizer, what is for training, and the form of outputs change nothing
here, but whoever loads a converted folder in OpenCLIP again expects them.
"""

import json
from collections.abc import Mapping
from typing import Any

# Keys that are for training, for the form of outputs, or for what is refused by another key.
VISION_IGNORED = {
    "patch_dropout",
    "output_tokens",
    "pos_embed_type",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
}
TEXT_IGNORED = {
    "pad_id",
    "tokenizer_mode",
    "output_tokens",
    "final_ln_after_pool",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
}
# By the object that holds them.
KEPT = {
    "vision_cfg": VISION_IGNORED,
    "text_cfg": {*TEXT_IGNORED, "hf_tokenizer_name", "tokenizer_kwargs", "text_arch"},
}
# Of the pixels, these are the model's, or follow from it.
PIXELS = {"size", "mean", "std", "interpolation", "resize_mode"}
USUAL = {"mode": "RGB", "fill_color": 0}


def kept(document: Mapping[str, Any]) -> str | None:
    """Returns what an `open_clip_config.json` says beside the model, as JSON; None for nothing.

    Args:
        document: a valid one.
    """
    model, pixels = document["model_cfg"], document.get("preprocess_cfg") or {}
    found = {
        name: {key: model[name][key] for key in sorted(KEPT[name]) if model[name].get(key)}
        for name in KEPT
    }
    if found["text_cfg"].get("text_arch") == "clip":  # older versions don't know the key
        del found["text_cfg"]["text_arch"]
    found["preprocess_cfg"] = {
        key: pixels[key]
        for key in sorted(pixels)
        if key not in PIXELS and pixels[key] != USUAL.get(key)
    }
    if pixels.get("interpolation") == "random":  # in training; bicubic otherwise
        found["preprocess_cfg"]["interpolation"] = "random"
    found = {name: keys for name, keys in found.items() if keys}
    return json.dumps(found, sort_keys=True) if found else None


def with_kept(document: dict[str, Any], text: str) -> dict[str, Any]:
    """Returns a configuration together with what `kept` returned of another.

    Raises:
        ValueError: it is something else than what `kept` returns.
    """
    found = json.loads(text)
    parts = {**KEPT, "preprocess_cfg": None}
    if not isinstance(found, dict) or not all(
        name in parts and isinstance(keys, dict) for name, keys in found.items()
    ):
        raise ValueError(f"open_clip must be an object of {', '.join(parts)}. Got {text[:100]}")
    model, pixels = dict(document["model_cfg"]), dict(document["preprocess_cfg"])
    for name in KEPT:
        model[name] = {**model[name], **found.get(name, {})}
    extra = dict(found.get("preprocess_cfg", {}))
    if pixels["interpolation"] != "bicubic":  # somebody has changed it since
        extra.pop("interpolation", None)
    return {"model_cfg": model, "preprocess_cfg": {**pixels, **extra}}
