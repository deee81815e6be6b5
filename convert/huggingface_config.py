"""The `config.json` of Hugging Face's CLIP and our configuration, in both directions.

A missing key means its default, and unknown keys mean nothing: files of all versions of
transformers have keys for generation and training.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax.config import CLIP_VOCAB_SIZE, Activation, CLIPConfig, TextConfig, ViTConfig
from clip_jax.convert.deviations import deviations
from clip_jax.convert.fields import Fields, raise_problems
from clip_jax.pixel_config import PixelConfig

# Keys with their defaults.
BLOCKS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
    **BLOCKS,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    **BLOCKS,
}
PROJECTION = 512
ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
THEIRS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
# With this end token, which old files have whatever their vocabulary, transformers pools at the
# first largest id instead.
LARGEST = 2
START, END = CLIP_VOCAB_SIZE - 2, CLIP_VOCAB_SIZE - 1
# A key of ours, which transformers ignores: with it, a model of OpenAI's rule comes back with that.
# The end token alone means another, which differs for texts that have none.
POOLING = "clip_jax_pooling"


def from_document(document: Mapping[str, Any], pixels: PixelConfig | None = None) -> CLIPConfig:
    """Returns the configuration that the `config.json` of a `CLIPModel` describes.

    Args:
        document: the content of the file.
        pixels: how the images become pixels, which another file says.

    Raises:
        CheckpointError: values are not possible or not supported; lists all problems.
    """
    problems: list[str] = []
    root = Fields(document, "config.json", problems)
    text, vision = _tower(root, "text", TEXT), _tower(root, "vision", VISION)
    embed_dim = root.whole("projection_dim", PROJECTION)
    of_text, of_vision = activation(text), activation(vision)
    # The text tower has its own activation only if it isn't the vision tower's.
    built = root.built(
        CLIPConfig,
        embed_dim,
        vision_config(vision),
        text_config(text, None if of_text == of_vision else of_text),
        of_vision,
        pixels=pixels or PixelConfig(),
    )
    raise_problems(problems)
    return built


def activation(fields: Fields, default: str = "quick_gelu") -> Activation:
    """Returns a tower's activation."""
    return fields.choice("hidden_act", ACTIVATIONS, default)


def text_config(fields: Fields, own: Activation | None = None) -> TextConfig | None:
    """Returns the configuration of a text tower, given its own activation; None after problems."""
    eos_id: int | None = fields.whole("eos_token_id", END, least=0)
    pooling = "argmax" if eos_id == LARGEST else "eos"
    if fields.get(POOLING) == "argmax" and eos_id in (LARGEST, END):
        pooling, eos_id = "argmax", None
    return fields.built(
        TextConfig,
        *sizes(fields, TEXT),
        fields.whole("max_position_embeddings", TEXT["max_position_embeddings"]),
        fields.whole("vocab_size", TEXT["vocab_size"]),
        pooling=pooling,
        eos_id=eos_id,
        activation=own,
        **blocks_options(fields, TEXT),
    )


def vision_config(fields: Fields, own: Activation | None = None) -> ViTConfig | None:
    """Returns the configuration of a vision tower, given its own activation."""
    if (channels := fields.whole("num_channels", 3)) != 3:
        fields.problem("num_channels", f"images of 3 channels are supported. Got {channels}")
    size = fields.whole("image_size", VISION["image_size"])
    patch_size = fields.whole("patch_size", VISION["patch_size"])
    return fields.built(
        ViTConfig,
        size,
        patch_size,
        *sizes(fields, VISION),
        activation=own,
        drops_remainder=size % (patch_size or 1) != 0,
        **blocks_options(fields, VISION),
    )


def to_document(config: CLIPConfig) -> dict[str, Any]:
    """Returns the `config.json` of a configuration; inverts `from_document`.

    Raises:
        CheckpointError: Hugging Face's CLIP can't express the model; lists all reasons.
    """
    check_expressible(config)
    assert isinstance(config.vision, ViTConfig)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "text_config": text_document(config.text, config.text_activation, config.embed_dim),
        "vision_config": vision_document(config.vision, config.vision_activation, config.embed_dim),
    }


def check_expressible(config: CLIPConfig) -> None:
    """Raises CheckpointError for a model that Hugging Face's CLIP can't express."""
    said = {"activation", "activations", "epsilon", "mlp_width", "num_heads", "pixels", "tokenizer"}
    said.add("remainder")
    lost = {switch: what for switch, what in deviations(config).items() if switch not in said}
    if config.text.pooling == "eos" and config.text.eos_id != LARGEST:
        lost.pop("pooling")
    if config.pixels.resize == "longest":
        lost["pixels"] = "pictures with margins"
    raise_problems(list(lost.values()), "Hugging Face's CLIP has no place for")


def text_document(text: TextConfig, activation: Activation, embed_dim: int) -> dict[str, Any]:
    """Returns the `text_config` of a text tower."""
    eos_id = text.eos_id
    own: dict[str, Any] = {}
    if text.pooling == "argmax" and eos_id != LARGEST:
        eos_id = END if text.vocab_size == CLIP_VOCAB_SIZE else LARGEST
        own[POOLING] = "argmax"
    return {
        "model_type": "clip_text_model",
        **blocks_document(text, activation),
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
        "projection_dim": embed_dim,
        "bos_token_id": START,
        "eos_token_id": eos_id,
        "pad_token_id": 1,
        **own,
    }


def vision_document(vision: ViTConfig, activation: Activation, embed_dim: int) -> dict[str, Any]:
    """Returns the `vision_config` of a vision tower."""
    return {
        "model_type": "clip_vision_model",
        **blocks_document(vision, activation),
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "projection_dim": embed_dim,
    }


def _tower(root: Fields, name: str, defaults: Mapping[str, Any]) -> Fields:
    """Returns a tower's dictionary in the way that transformers puts it together."""
    own = root.inner(f"{name}_config", {})
    if root.get(f"{name}_config_dict") is None:
        return own
    # In old files this one, completed with the defaults, overrides the other's keys.
    winning = root.inner(f"{name}_config_dict")
    merged = {**own, **defaults, **winning}
    return Fields(merged, f"{root.where}.{name}_config_dict", root.problems)


def sizes(fields: Fields, defaults: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the width, the number of layers and that of heads of a tower."""
    width, layers, heads = (
        fields.whole(name, defaults[name])
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    return width, layers, heads


def blocks_options(fields: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keyword arguments that the configurations of both towers have."""
    hidden = fields.whole("intermediate_size", defaults["intermediate_size"])
    width = fields.whole("hidden_size", defaults["hidden_size"])
    return {
        "norm_epsilon": fields.number("layer_norm_eps", defaults["layer_norm_eps"]),
        "mlp_width": None if hidden == 4 * width else hidden,
    }


def blocks_document(tower: TextConfig | ViTConfig, activation: Activation) -> dict[str, Any]:
    """Returns the keys that the configurations of both towers have."""
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "hidden_act": THEIRS[activation],
        "layer_norm_eps": tower.norm_epsilon,
        "attention_dropout": 0.0,
    }
