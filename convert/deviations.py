"""How a model differs from OpenAI's architecture, for formats that can't say everything."""

from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.image_size import shown_size
from clip_jax.pixel_config import PixelConfig

EPSILON = 1e-5


def deviations(config: CLIPConfig) -> dict[str, str]:
    """Returns what a model has otherwise than OpenAI's: a noun phrase by the name of its switch."""
    text, vision = config.text, config.vision
    found: dict[str, str] = {}
    activations = {config.text_activation}
    if isinstance(vision, ResNetConfig):
        found["resnet"] = "a ResNet"
        if vision.num_heads * 64 != vision.num_features:
            found["num_heads"] = f"{vision.num_heads} heads of the attention pool"
    else:
        activations.add(config.vision_activation)
        found |= _of_blocks(vision, "vision")
        if not vision.has_ln_pre:
            found["ln_pre"] = "a vision tower without ln_pre"
        if vision.pooling != "class":  # of the class token alone, the norm is the same anywhere
            by = {"mean": "the mean of the patches", "attention": "SigLIP's attention"}
            found["vision_pooling"] = f"pooling by {by[vision.pooling]}"
        if isinstance(vision.image_size, tuple):
            found["image_shape"] = f"images that are no squares ({shown_size(vision.image_size)})"
        if vision.has_class_token and vision.has_remainder:
            found["remainder"] = f"images that aren't all seen ({shown_size(vision.image_size)})"
    found |= _of_blocks(text, "text")
    if activations != {"quick_gelu"}:
        found["activation"] = f"the activation {' and '.join(sorted(activations))}"
    if len(activations) > 1:
        found["activations"] = f"towers of different activations ({' and '.join(activations)})"
    if not text.is_causal:
        found["mask"] = "a text tower without a causal mask"
    if text.pooling != "argmax":
        of = f" at the id {text.eos_id}" if text.pooling == "eos" else ""
        found["pooling"] = f"text pooling {text.pooling!r}{of}"
    if not text.has_projection:
        found["projection"] = "a text tower without projection"
    if text.has_projection_bias:
        found["projection_bias"] = "a text projection with bias"
    if text.tokenizer is not None:
        found["tokenizer"] = f"the tokenizer {text.tokenizer}"
    if config.logit_bias is not None:
        found["logit_bias"] = "a bias of the logits"
    if config.pixels != PixelConfig():
        found["pixels"] = "pixels that are prepared otherwise than OpenAI's"
    return found


def _of_blocks(tower: TextConfig | ViTConfig, name: str) -> dict[str, str]:
    found = {}
    if tower.norm_epsilon != EPSILON:
        found["epsilon"] = f"LayerNorms with epsilon {tower.norm_epsilon:g} ({name})"
    if tower.mlp_width not in (None, 4 * tower.width):
        found["mlp_width"] = f"MLPs of width {tower.mlp_width:,} ({name})"
    if tower.layer_scale is not None:
        found["layer_scale"] = f"layer scale ({name})"
    if tower.num_heads != max(tower.width // 64, 1):
        found["num_heads"] = f"{tower.num_heads} heads ({name})"
    return found
