"""The reference's model in PyTorch, run as a black box."""

import dataclasses
import importlib
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from clip_jax.catalog import CATALOG
from clip_jax.convert import to_pytorch, write_pytorch
from clip_jax.convert.parts import model_arrays
from clip_jax.convert.wrappers import state_values
from clip_jax.errors import CheckpointError
from clip_jax.parity.peer import Peer, Tower
from clip_jax.parity.reference import import_reference, quiet
from clip_jax.weights import native_folder, official_file, read_native


@dataclasses.dataclass(frozen=True)
class Reference(Peer):
    """The reference's model."""

    clip: Any
    preprocess: Any

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n m 3"]:
        """Preprocesses images, and returns them in our order of axes."""
        stacked = [self.preprocess(image).numpy() for image in images]
        return np.stack(stacked).transpose(0, 2, 3, 1)

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"]:
        """Returns token ids; texts that are too long are cut."""
        return self.clip.tokenize(list(texts), context_length, truncate=True).numpy()

    def _module(self, tower: Tower, name: str) -> str:
        return f"visual.{name}" if tower == "image" else name

    def _layout(self, tower: Tower, name: str, x: np.ndarray) -> np.ndarray:
        if name.startswith("transformer."):
            return x.swapaxes(0, 1)  # the reference's transformers work on (l, b, w)
        return super()._layout(tower, name, x)

    def _logits(self, images: Any, tokens: Any) -> Any:
        return self.model(images, tokens)[0]


def load_reference(name_or_path: str | os.PathLike[str]) -> Reference:
    """Loads into the reference what `clip_jax.load` loads, with PyTorch's own readers.

    Args:
        name_or_path: a name, whose official file is downloaded if necessary; a TorchScript archive;
            a state dictionary from `torch.save`; a `.safetensors` file; or a native folder, which
            is exported first, as bundled models are. The reference has no other activation than
            `quick_gelu`.

    Raises:
        ModuleNotFoundError: PyTorch or the reference is missing; the message says how to install
            them.
        CheckpointError: a native folder can't be read, or a file holds several sets of weights.
        DownloadError: the file of a name can't be downloaded.
    """
    clip = import_reference()
    torch = importlib.import_module("torch")
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and name_or_path in CATALOG:
        path = (native_folder if CATALOG[name_or_path].is_bundled else official_file)(name_or_path)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "state.pt"
        if _is_torchscript(path):
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
            bare = path
        elif path.is_dir():
            write_pytorch(to_pytorch(*read_native(path)), bare)
            state = torch.load(bare, weights_only=True)
        else:
            state = _state_dict(torch, path)
            torch.save(state, bare)
        model, preprocess = clip.load(str(bare), device="cpu", jit=False)
        # The reference has rounded the weights to float16, which changes those of float32
        # checkpoints. So they are loaded a second time.
        model = model.float().eval()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    return Reference(torch, model, clip, preprocess)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _state_dict(torch: Any, path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        return model_arrays(_safetensors().load_file(path))
    try:
        root = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: PyTorch's safe reader refuses it ({str(error).splitlines()[0]}), expected "
            f"tensors and plain values only: convert it first (`clip-jax convert`), and give that"
        ) from None
    return model_arrays(state_values(root, torch.Tensor))


def _safetensors() -> Any:
    """Returns PyTorch's own reader, so that the comparison doesn't depend on ours."""
    try:
        return importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PyTorch reads .safetensors files with safetensors: pip install 'clip-jax-flax[torch]'",
            name=error.name,
        ) from None
