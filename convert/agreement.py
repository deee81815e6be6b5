"""Compares two descriptions of one model, where a folder has OpenCLIP's and Hugging Face's."""

from pathlib import Path

from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.convert.families import CLIP, CONFIG, OPEN_CLIP_CONFIG
from clip_jax.convert.huggingface_config import from_document as from_huggingface
from clip_jax.convert.json_file import read_json
from clip_jax.errors import CheckpointError
from clip_jax.messages import differences


def check_agreement(folder: Path, config: CLIPConfig) -> None:
    """Checks that a `config.json` beside OpenCLIP's configuration describes the same model.

    A model of the wrong activation or number of heads gives embeddings that look right. What the
    two can't both say, such as text pooling and pixels, isn't compared.

    Args:
        folder: a folder of OpenCLIP's.
        config: what its own configuration says.

    Raises:
        CheckpointError: they contradict each other; lists all that differs, and says what to do.
    """
    try:
        document = read_json(folder / CONFIG)
        if document.get("model_type") != CLIP:  # timm's, of the image tower alone
            return
        other = from_huggingface(document)
    except (FileNotFoundError, CheckpointError):  # it isn't needed
        return
    if not (isinstance(config.vision, ViTConfig) and isinstance(other.vision, ViTConfig)):
        return
    if lines := differences(_compared(other), _compared(config)):
        told = "\n".join(lines).replace("there", CONFIG).replace("here", OPEN_CLIP_CONFIG)
        raise CheckpointError(
            f"{folder}: {CONFIG} and {OPEN_CLIP_CONFIG} contradict each other, expected two "
            f"descriptions of one model: remove the one that is wrong, or that isn't of these "
            f"weights\n{told}"
        )


def _compared(config: CLIPConfig) -> dict[str, object]:
    text, vision = config.text, config.vision
    assert isinstance(vision, ViTConfig)
    found: dict[str, object] = {"embed_dim": config.embed_dim}
    for name, tower in (("text", text), ("vision", vision)):
        for number in ("width", "num_layers", "num_heads"):
            found[f"{name}.{number}"] = getattr(tower, number)
        found[f"{name}.mlp_width"] = tower.mlp_width or 4 * tower.width
    return found | {
        "text.context_length": text.context_length,
        "text.vocab_size": text.vocab_size,
        "text.activation": config.text_activation,
        "vision.image_size": vision.image_size,
        "vision.patch_size": vision.patch_size,
        "vision.activation": config.vision_activation,
    }
