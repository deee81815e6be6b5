"""The `config.json` of Hugging Face's SigLIP and our configuration, in both directions.

SigLIP 2 of fixed image sizes has the same form. As for CLIP, a missing key means its default, and
unknown keys mean nothing: among them the ids of start and end, which no model was trained with.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import SigLIPConfig, TextConfig, ViTConfig
from clip_jax.convert.deviations import deviations
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.convert.huggingface_config import activation, blocks_document, blocks_options, sizes
from clip_jax.pixel_config import HALF, PixelConfig

# Keys with their defaults.
BLOCKS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "vocab_size": 32000,
    **BLOCKS,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    **BLOCKS,
}
GEMMA_VOCAB_SIZE = 256000  # of the tokenizer of SigLIP 2
PIXELS = PixelConfig(mean=HALF, std=HALF, resize="squash")
PIXELS_2 = PixelConfig(mean=HALF, std=HALF, resize="squash", interpolation="bilinear")


def default_pixels(document: Mapping[str, Any]) -> PixelConfig:
    """Returns how images become pixels if a folder doesn't say: SigLIP 2's filter is bilinear."""
    text = document.get("text_config")
    size = text.get("vocab_size") if isinstance(text, Mapping) else None
    return PIXELS_2 if size == GEMMA_VOCAB_SIZE else PIXELS


def from_document(document: Mapping[str, Any], pixels: PixelConfig) -> SigLIPConfig:
    """Returns the configuration that the `config.json` of a `SiglipModel` describes.

    Args:
        document: the content of the file.
        pixels: how the images become pixels, which another file says.

    Raises:
        CheckpointError: values are not possible or not supported; lists all problems.
    """
    problems: list[str] = []
    root = Fields(document, "config.json", problems)
    text, vision = root.inner("text_config", {}), root.inner("vision_config", {})
    embed_dim = vision.whole("hidden_size", VISION["hidden_size"])
    if (size := projection_size(text)) != embed_dim:
        text.problem("projection_size", f"must be the images' hidden_size, {embed_dim}. Got {size}")
    of_text, of_vision = (activation(tower, BLOCKS["hidden_act"]) for tower in (text, vision))
    built = root.built(
        SigLIPConfig,
        embed_dim,
        vision_config(vision),
        text_config(text, None if of_text == of_vision else of_text),
        of_vision,
        pixels=pixels,
    )
    raise_problems(problems)
    return built


def projection_size(text: Fields) -> int:
    """Returns the size of a text's embedding."""
    return text.whole("projection_size", text.whole("hidden_size", TEXT["hidden_size"]))


def text_config(fields: Fields, own: Any = None) -> TextConfig | None:
    """Returns the configuration of a text tower, given its own activation; None after problems."""
    return fields.built(
        TextConfig,
        *sizes(fields, TEXT),
        fields.whole("max_position_embeddings", TEXT["max_position_embeddings"]),
        fields.whole("vocab_size", TEXT["vocab_size"]),
        is_causal=False,
        pooling="last",
        has_projection_bias=True,
        activation=own,
        **blocks_options(fields, TEXT),
    )


def vision_config(fields: Fields, own: Any = None) -> ViTConfig | None:
    """Returns the configuration of a vision tower, given its own activation."""
    if (channels := fields.whole("num_channels", 3)) != 3:
        fields.problem("num_channels", f"images of 3 channels are supported. Got {channels}")
    if not fields.flag("vision_use_head", True):
        fields.problem(
            "vision_use_head",
            "a tower without its head makes no embeddings, expected true: load a whole model",
        )
    fields.refuse({"num_patches": "a NaFlex model, for images of any shape"}, "fixed sizes are")
    return fields.built(
        ViTConfig,
        fields.whole("image_size", VISION["image_size"]),
        fields.whole("patch_size", VISION["patch_size"]),
        *sizes(fields, VISION),
        has_ln_pre=False,
        pooling="attention",
        activation=own,
        **blocks_options(fields, VISION),
    )


def to_document(config: SigLIPConfig) -> dict[str, Any]:
    """Returns the `config.json` of a configuration; inverts `from_document`.

    Raises:
        CheckpointError: Hugging Face's SigLIP can't express the model; lists all reasons.
    """
    found = deviations(config)
    lost = [found[name] for name in ("layer_scale", "projection") if name in found]
    if config.vision.has_ln_pre:
        lost.append("a vision tower with ln_pre")
    if not (config.text.has_projection_bias or "projection" in found):
        lost.append("a text projection without bias")
    if config.pixels.resize != "squash":
        lost.append("pictures that are cropped or have margins")
    raise_problems(lost, "Hugging Face's SigLIP has no place for")
    text, vision = config.text, config.vision
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": "siglip_text_model",
            **blocks_document(text, config.text_activation),
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocab_size,
            "projection_size": config.embed_dim,
            # They mean nothing, but transformers warns of its defaults, which are CLIP's.
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            **blocks_document(vision, config.vision_activation),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "vision_use_head": True,
        },
    }
