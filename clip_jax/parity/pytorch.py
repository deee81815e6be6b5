"""The reference's model in PyTorch, run as a black box.

Hooks on its modules record hidden states under the names that our own forward passes give to `tap`.
"""

import dataclasses
import importlib
import os
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
from clip_jax.convert.reader import state_values
from clip_jax.parity.reference import import_reference, quiet
from clip_jax.weights import native_folder, official_file, read_native


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference's model in float32 on the CPU, with its preprocessing and tokenizer."""

    torch: Any
    clip: Any
    model: Any
    preprocess: Any

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n n 3"]:
        """Preprocesses images, and returns them in our order of axes."""
        stacked = [self.preprocess(image).numpy() for image in images]
        return np.stack(stacked).transpose(0, 2, 3, 1)

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"]:
        """Returns token ids; texts that are too long are truncated."""
        return self.clip.tokenize(list(texts), context_length, truncate=True).numpy()

    def image_stages(
        self, images: Float[np.ndarray, "b n n 3"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vision tower's hidden states in `names`, in the order of computation."""
        return self._stages("visual.", names, self.model.encode_image, self._images(images))

    def text_stages(
        self, tokens: Int[np.ndarray, "b l"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """Returns the text tower's hidden states in `names`, in the order of computation."""
        return self._stages("", names, self.model.encode_text, self._tokens(tokens))

    def logits(
        self, images: Float[np.ndarray, "i n n 3"], tokens: Int[np.ndarray, "t l"]
    ) -> Float[np.ndarray, "i t"]:
        """Returns the logits per image."""
        with self.torch.no_grad():
            return self.model(self._images(images), self._tokens(tokens))[0].numpy()

    def _stages(
        self, tower: str, names: Iterable[str], encode: Any, batch: Any
    ) -> dict[str, np.ndarray]:
        modules = dict(self.model.named_modules())
        stages: dict[str, np.ndarray] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                # A copy, because later modules may modify it in place.
                stages[name] = _in_our_layout(name, np.array(output.numpy()))

            return hook

        wanted = [name for name in names if name != "features"]
        if missing := [name for name in wanted if tower + name not in modules]:
            raise ValueError(
                f"the PyTorch model has no modules {missing}: not the same architecture"
            )
        hooks = [modules[tower + name].register_forward_hook(keep(name)) for name in wanted]
        try:
            with self.torch.no_grad():
                stages["features"] = encode(batch).numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return stages

    def _images(self, images: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def _tokens(self, tokens: np.ndarray) -> Any:
        return self.torch.from_numpy(np.asarray(tokens, np.int64))


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
    return Reference(torch, clip, model, preprocess)


def _in_our_layout(name: str, x: np.ndarray) -> np.ndarray:
    if name.startswith("transformer."):
        return x.swapaxes(0, 1)  # the reference's transformers work on (l, b, w)
    if x.ndim == 4:
        x = x.transpose(0, 2, 3, 1)
        # Our patch embedding returns a sequence.
        return x.reshape(len(x), -1, x.shape[-1]) if name == "conv1" else x
    return x


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _state_dict(torch: Any, path: Path) -> Mapping[str, Any]:
    if zipfile.is_zipfile(path):
        root = torch.load(path, map_location="cpu", weights_only=True)
    else:
        root = _safetensors().load_file(path)
    return state_values(root, torch.Tensor)


def _safetensors() -> Any:
    """Returns PyTorch's own reader, so that the comparison doesn't depend on ours."""
    try:
        return importlib.import_module("safetensors.torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PyTorch reads .safetensors files with safetensors: pip install 'clip-jax-flax[torch]'",
            name=error.name,
        ) from None
