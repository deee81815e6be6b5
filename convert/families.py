"""Tells whose checkpoint something is, by the files of a folder or the names of the arrays."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from clip_jax.convert.archive import shown
from clip_jax.convert.json_file import read_json
from clip_jax.errors import CheckpointError, is_exhausted
from clip_jax.messages import some

Family = Literal["native", "open_clip", "huggingface", "big_vision"]

CONFIG, OPEN_CLIP_CONFIG, PIPELINE = "config.json", "open_clip_config.json", "model_index.json"
OPEN_CLIP_WEIGHTS = re.compile(r"open_clip_.*\.(safetensors|bin|pth?)$")
# The kinds of folders of transformers that hold CLIP, or one of its towers.
CLIP, TEXT, VISION = "clip", "clip_text_model", "clip_vision_model"
# And those that hold SigLIP, the first or the second of fixed image sizes.
SIGLIP, SIGLIP_TEXT, SIGLIP_VISION = "siglip", "siglip_text_model", "siglip_vision_model"

NAFLEX = (
    "is a NaFlex model of SigLIP 2, for images of any shape, which is not supported: expected one "
    "of a fixed image size, such as google/siglip2-base-patch16-224"
)
SIGLIP_FILE = (
    "is a SigLIP model, which loads together with its configuration: give the folder that holds "
    "both, or load it by name"
)

# What array names say about a file that is not OpenAI's or OpenCLIP's, in the order of asking.
FOREIGN = (
    (
        r"text\.transformer\.(embeddings|encoder|shared)\.",
        "has a text tower of transformers inside an OpenCLIP model (text.transformer.embeddings), "
        "such as RoBERTa's, which is not supported: OpenCLIP's own text towers are",
    ),
    (
        r"text_decoder\.|text\.cls_emb$|visual\.attn_pool\.query$",
        "is a CoCa model of OpenCLIP, which is not supported: its CLIP models are",
    ),
    (
        r"visual\.trunk\.attn_pool\.latent$",
        SIGLIP_FILE,
    ),
    (
        r"visual\.trunk\.",
        "has a vision tower of timm (visual.trunk), such as ConvNeXt, EVA, ViTamin, PE-Core or "
        "MobileCLIP, which is not supported: OpenCLIP's own Vision Transformers and ResNets are",
    ),
    (
        r"image_encoder\.model\.",
        "is Apple's MobileCLIP, which is not supported: OpenCLIP's own Vision Transformers and "
        "ResNets are",
    ),
    (
        r"vision_model\.head\.|text_model\.head\.|head\.(weight|probe)$",
        SIGLIP_FILE,
    ),
    (
        r"cond_stage_model\.|conditioner\.embedders\.",
        "is a single file of Stable Diffusion with a text tower in it, expected a CLIP model: give "
        "it to clip_jax.load_text_model, or the folder of a whole CLIP model",
    ),
)
FOREIGN_TOWER = (
    "holds one tower alone ({kind}), expected a whole CLIP model, of the type clip: load the tower "
    "by clip_jax.load_text_model or clip_jax.load_vision_model"
)
HUGGING_FACE = (
    r"(vision_model|text_model)\.|embeddings\.(token|patch)_embedding\.weight$",
    "has the names of Hugging Face's transformers (text_model., vision_model.), which load "
    "together with their config.json: give the folder that holds both",
)


def family_of(folder: str | os.PathLike[str]) -> Family:
    """Tells which library's model a folder holds.

    Raises:
        CheckpointError: none's that is known, or a kind that is not supported; says which files
            were looked for.
    """
    folder = Path(folder)
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        if is_exhausted(error):
            raise
        raise CheckpointError(f"{folder} can't be read ({error.strerror or error})") from None
    document: dict[str, object] = {}
    if CONFIG in names:
        try:
            document = read_json(folder / CONFIG)
        except CheckpointError:
            if OPEN_CLIP_CONFIG not in names:  # which is enough
                raise
    vision = document.get("vision")
    if isinstance(vision, dict) and "type" in vision:
        return "native"
    if OPEN_CLIP_CONFIG in names:
        return "open_clip"
    if "model_type" in document:
        check_model_type(folder, document["model_type"])
        return "huggingface"
    if PIPELINE in names:
        parts = sorted(names & {"text_encoder", "text_encoder_2", "image_encoder"})
        raise CheckpointError(
            f"{folder} is a pipeline of diffusers, expected one model: give the path of one of its "
            f"folders, or its name as subfolder= "
            f"({', '.join(parts) or 'it has no text_encoder and no image_encoder'})"
        )
    if isinstance(timm := document.get("architecture"), str):
        raise CheckpointError(
            f"{folder} holds a model of timm ({shown(timm)}, by its {CONFIG}), which is not "
            f"supported: expected a CLIP model of OpenCLIP, with its {OPEN_CLIP_CONFIG}, or of "
            f"transformers, with a model_type"
        )
    if weights := sorted(name for name in names if OPEN_CLIP_WEIGHTS.match(name)):
        raise CheckpointError(
            f"{folder} has weights of OpenCLIP, {some(weights, 3)}, but no {OPEN_CLIP_CONFIG}, "
            f"which describes the model: download or copy it too, or name the model of the file: "
            f"`clip-jax convert FILE DST --model NAME --activation A`"
        )
    has_weights = any(name.endswith((".safetensors", ".bin", ".msgpack")) for name in names)
    if CONFIG in names and has_weights and not document:
        raise CheckpointError(
            f"{folder / CONFIG}: holds an empty object, expected the description of a model: "
            f"get it from its source again"
        )
    return "native"


def check_model_type(folder: Path, kind: object) -> None:
    """Checks that a folder of transformers holds CLIP, SigLIP or one of their towers.

    Raises:
        CheckpointError: it holds another kind of model, which is named.
    """
    if kind in (CLIP, TEXT, VISION, SIGLIP, SIGLIP_TEXT, SIGLIP_VISION):
        return
    if isinstance(kind, str) and kind.startswith("siglip2"):
        raise CheckpointError(f"{folder} (type {shown(kind)}) {NAFLEX}")
    name = shown(kind) if isinstance(kind, str) else type(kind).__name__
    raise CheckpointError(
        f"{folder} holds a model of transformers of the type {name}, which is not supported: "
        f"expected {CLIP}, {SIGLIP}, or one tower of either"
    )


def check_open_clip(names: Collection[str]) -> None:
    """Raises CheckpointError if arrays' names are not those of OpenAI's or OpenCLIP's CLIP."""
    if any(name.startswith("visual.") for name in names):
        # A classifier's, that was trained on top.
        names = [name for name in names if not name.startswith("head.")]
    for pattern, what in (*FOREIGN, HUGGING_FACE):
        if any(map(re.compile(pattern).match, names)):
            raise CheckpointError(what)


def check_official(names: Collection[str]) -> None:
    """Raises CheckpointError if arrays' names are not those of OpenAI's CLIP."""
    check_open_clip(names)
    if "text.token_embedding.weight" in names:
        raise CheckpointError(
            "has OpenCLIP's names (text.token_embedding.weight), whose files don't say all of the "
            "model: give the folder that also holds open_clip_config.json, or give "
            "clip_jax.convert.from_open_clip the model's name or configuration"
        )
