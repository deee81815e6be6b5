"""OpenCLIP's model in PyTorch, run as a black box."""

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

from clip_jax.convert.families import OPEN_CLIP_CONFIG
from clip_jax.image_size import ImageSize
from clip_jax.parity.peer import Peer, Tower
from clip_jax.parity.reference import import_library, loading, quiet

# Our names of the modules of timm's tower, which SigLIP has, and theirs.
TIMM = {"conv1": "patch_embed", "ln_post": "norm"}


@dataclasses.dataclass(frozen=True)
class OpenCLIP(Peer):
    """OpenCLIP's model."""

    preprocess: Any
    tokenizer: Any | None
    is_pooled_by_mean: bool

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n m 3"]:
        """Preprocesses images, and returns them in our order of axes."""
        stacked = [self.preprocess(image).numpy() for image in images]
        return np.stack(stacked).transpose(0, 2, 3, 1)

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"] | None:
        """Returns token ids; None if the model's tokenizer is none of OpenCLIP's own."""
        if self.tokenizer is None:
            return None
        return self.tokenizer(list(texts), context_length=context_length).numpy()

    def _module(self, tower: Tower, name: str) -> str:
        if tower == "image" and hasattr(self.model.visual, "trunk"):
            return f"visual.trunk.{TIMM.get(name, name.replace('transformer.resblocks', 'blocks'))}"
        if tower == "image":
            return f"visual.{name}"
        # With `custom_text` the text tower is a module of its own.
        return f"text.{name}" if hasattr(self.model, "text") else name

    def _layout(self, tower: Tower, name: str, x: np.ndarray) -> np.ndarray:
        x = super()._layout(tower, name, x)
        is_whole = hasattr(self.model.visual, "trunk")  # whose pool sees all tokens
        if name == "ln_post" and x.ndim == 3 and not is_whole:  # ours is what the projection sees
            return x[:, 1:].mean(1) if self.is_pooled_by_mean else x[:, 0]
        return x

    def _logits(self, images: Any, tokens: Any) -> Any:
        return self.model.get_logits(images, tokens)[0]


def load_open_clip(
    path: str | os.PathLike[str],
    document: Mapping[str, Any] | None = None,
    image_size: ImageSize | None = None,
) -> OpenCLIP:
    """Loads into OpenCLIP a folder, or weights of which the caller knows the configuration.

    Args:
        path: a folder with `open_clip_config.json`; or, given `document`, a file of weights, or a
            folder that holds them.
        document: what `open_clip_config.json` would say.
        image_size: the size of images to load it for, if it isn't its own.

    Raises:
        ModuleNotFoundError: PyTorch or OpenCLIP is missing; the message says how to install them.
        CheckpointError: OpenCLIP can't read it.
    """
    library = import_library("open_clip")
    torch = import_library("torch")
    path = Path(path).absolute()
    with tempfile.TemporaryDirectory() as made, loading("open_clip", path):
        folder = path if document is None else _folder(path, document, Path(made))
        name = f"local-dir:{folder}"
        model, _, preprocess = library.create_model_and_transforms(
            name, require_pretrained=True, force_image_size=image_size
        )
        config = json.loads((folder / OPEN_CLIP_CONFIG).read_text())["model_cfg"]
        theirs = "hf_tokenizer_name" in config["text_cfg"]  # would be fetched from the Hub
        tokenizer = None if theirs else library.get_tokenizer(name)
    with quiet():
        model = model.float().eval()
    by_mean = config["vision_cfg"].get("pool_type") == "avg"
    return OpenCLIP(torch, model, preprocess, tokenizer, by_mean)


def _folder(path: Path, document: Mapping[str, Any], folder: Path) -> Path:
    """Makes a folder such as OpenCLIP loads, with links to weights."""
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps({"preprocess_cfg": {}, **document}))
    if path.is_dir():
        for file in path.iterdir():
            if file.suffix in (".safetensors", ".bin", ".pth"):
                (folder / file.name).symlink_to(file)
    else:
        kind = "model.safetensors" if path.suffix == ".safetensors" else "pytorch_model.bin"
        (folder / f"open_clip_{kind}").symlink_to(path)
    return folder
