"""The model of Hugging Face's transformers in PyTorch, run as a black box."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from clip_jax.convert import from_huggingface, to_huggingface
from clip_jax.convert.families import (
    CLIP,
    CONFIG,
    SIGLIP,
    SIGLIP_TEXT,
    SIGLIP_VISION,
    TEXT,
    VISION,
)
from clip_jax.convert.folder import read_folder
from clip_jax.convert.folder_writer import write_folder
from clip_jax.convert.huggingface import WEIGHTS, read_config
from clip_jax.convert.huggingface_config import text_document
from clip_jax.convert.huggingface_pixels import PREPROCESSOR, PROCESSOR, read_pixels
from clip_jax.convert.rules import HUGGING_FACE
from clip_jax.convert.single_file import read_single_file
from clip_jax.convert.table import from_targets
from clip_jax.errors import CheckpointError
from clip_jax.parity.peer import Peer, Tower
from clip_jax.parity.reference import import_library, loading
from clip_jax.shapes import text_shapes

# Our names of the modules, and theirs.
MODULES = {
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
TOWERS = {"image": "vision_model", "text": "text_model"}
BLOCKS, LAYERS = "transformer.resblocks.", "encoder.layers."
WORDS = ("vocab.json", "tokenizer.json")


@dataclasses.dataclass(frozen=True)
class HuggingFace(Peer):
    """Transformers' model, whole or one tower, with its image processor and tokenizer."""

    processor: Any | None
    tokenizer: Any | None
    is_whole: bool
    image_options: Mapping[str, Any]

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n m 3"]:
        """Preprocesses images, and returns them in our order of axes."""
        assert self.processor is not None, "a text tower has no pixels"
        stacked = [
            self.processor(image, return_tensors="np")["pixel_values"][0] for image in images
        ]
        return np.stack(stacked).transpose(0, 2, 3, 1)

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"] | None:
        """Returns token ids, padded as the folder says; None if it has no tokenizer."""
        if self.tokenizer is None:
            return None
        options = {"padding": "max_length", "truncation": True, "max_length": context_length}
        return np.asarray(self.tokenizer(list(texts), **options)["input_ids"])

    def _module(self, tower: Tower, name: str) -> str:
        name = name.replace(BLOCKS, LAYERS)
        # The classes of a tower without projection have its modules at the root.
        prefix = f"{TOWERS[tower]}." if hasattr(self.model, TOWERS[tower]) else ""
        return f"{prefix}{MODULES.get(name, name)}"

    def _encode_image(self, images: Any) -> Any:
        if self.is_whole:
            return self.model.get_image_features(
                pixel_values=images, **self.image_options
            ).pooler_output
        return _embeds(self.model(pixel_values=images, **self.image_options), "image_embeds")

    def _encode_text(self, tokens: Any) -> Any:
        if self.is_whole:
            return self.model.get_text_features(input_ids=tokens).pooler_output
        return _embeds(self.model(input_ids=tokens), "text_embeds")

    def _logits(self, images: Any, tokens: Any) -> Any:
        return self.model(
            pixel_values=images, input_ids=tokens, **self.image_options
        ).logits_per_image


def load_text_tower(
    path: str | os.PathLike[str], part: str | None = None, **told: Any
) -> HuggingFace:
    """Loads a text tower of a single file of Stable Diffusion into transformers' class.

    It is exported to a folder first, as transformers reads no such files.

    Args:
        path: the file.
        part: "text_encoder" or "text_encoder_2", where there are both.
        **told: what the file doesn't say, as for `read_single_file`.

    Raises:
        ModuleNotFoundError: PyTorch or transformers is missing.
        CheckpointError: the file has no such tower, or several.
    """
    found = read_single_file(path, part, **told)
    if found is None:
        raise CheckpointError(f"{path} is no single file of Stable Diffusion")
    config, embed_dim, _, tree = found
    arrays = from_targets(text_shapes(config, embed_dim), tree, HUGGING_FACE)
    own = config.activation or "quick_gelu"
    document = text_document(config, own, embed_dim or config.width)
    with tempfile.TemporaryDirectory() as made:
        files = {CONFIG: json.dumps(document).encode()}
        write_folder(Path(made, "exported"), files, WEIGHTS, arrays, replace=False)
        return load_huggingface(Path(made, "exported"))


def load_huggingface(folder: str | os.PathLike[str], image_size: int | None = None) -> HuggingFace:
    """Loads a folder of a `CLIPModel` or `SiglipModel`, or of a tower, into transformers.

    A whole model's weights in Flax's msgpack, which transformers 5 doesn't read, are exported
    first.

    Args:
        folder: the folder.
        image_size: the side of the images to run it on, if it isn't the model's own.

    Raises:
        ModuleNotFoundError: PyTorch or transformers is missing; the message says how to install
            them.
        CheckpointError: it holds another kind of model, or transformers can't read it.
    """
    library = import_library("transformers")
    torch = import_library("torch")
    folder = Path(folder)
    kind = read_config(folder)["model_type"]
    with tempfile.TemporaryDirectory() as made, loading("transformers", folder):
        source = folder
        in_msgpack = not [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        if kind == CLIP and in_msgpack:
            source = Path(made, "exported")
            to_huggingface(*from_huggingface(folder), source)
        model, info = getattr(library, _class(folder, kind)).from_pretrained(
            source, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if missing := info["missing_keys"]:  # they would be random
            raise ValueError(f"it finds no {', '.join(sorted(missing))}")
        is_siglip = kind.startswith(SIGLIP)
        has_images = kind not in (TEXT, SIGLIP_TEXT)
        processor = None
        if has_images:
            processor = _processor(library, folder, model, is_siglip, image_size)
        options = {} if image_size is None else {"interpolate_pos_encoding": True}
        # SigLIP's tokenizer is none of CLIP's files.
        words = None if is_siglip or kind == VISION else _words(folder)
        is_whole = kind in (CLIP, SIGLIP)
        return HuggingFace(torch, model.eval(), processor, words, is_whole, options)


def _class(folder: Path, kind: str) -> str:
    """Returns the name of the class that uses all of a folder's arrays."""
    names = {
        CLIP: "CLIPModel",
        SIGLIP: "SiglipModel",
        SIGLIP_TEXT: "SiglipTextModel",
        SIGLIP_VISION: "SiglipVisionModel",
    }
    if kind in names:
        return names[kind]
    tower, projection = {
        TEXT: ("CLIPTextModel", "text_projection."),
        VISION: ("CLIPVisionModel", "visual_projection."),
    }[kind]
    is_there = any(name.startswith(projection) for name in read_folder(folder, "huggingface"))
    return f"{tower}WithProjection" if is_there else tower


def _embeds(output: Any, name: str) -> Any:
    return output[name] if name in output else output.pooler_output


def _processor(
    library: Any, folder: Path, model: Any, is_siglip: bool, image_size: int | None
) -> Any:
    """Returns the image processor that uses Pillow; others compute other pixels."""
    kind = library.SiglipImageProcessorPil if is_siglip else library.CLIPImageProcessorPil
    if image_size is not None:
        sides = {"height": image_size, "width": image_size}
        squashes = is_siglip or read_pixels(folder).resize == "squash"
        size = sides if squashes else {"shortest_edge": image_size}
        sizes = {"size": size} if is_siglip else {"size": size, "crop_size": sides}
        if (folder / PREPROCESSOR).exists() or (folder / PROCESSOR).exists():
            return kind.from_pretrained(folder, local_files_only=True, **sizes)
        return kind(**sizes)
    if (folder / PREPROCESSOR).exists() or (folder / PROCESSOR).exists():
        return kind.from_pretrained(folder, local_files_only=True)
    n = getattr(model.config, "vision_config", model.config).image_size
    if is_siglip:
        return kind(size={"height": n, "width": n})
    return kind(size={"shortest_edge": n}, crop_size={"height": n, "width": n})


def _words(folder: Path) -> Any | None:
    if not any((folder / name).exists() for name in WORDS):
        return None
    return import_library("transformers").CLIPTokenizer.from_pretrained(
        folder, local_files_only=True
    )
