"""What the libraries in PyTorch that we compare with have in common.

Hooks on a model's modules record hidden states under the names that our own forward passes give to
`tap`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

Tower = Literal["image", "text"]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A model of another library in float32 on the CPU, with its preprocessing and tokenizer.

    Attributes:
        torch: the module.
        model: the library's model.
    """

    torch: Any
    model: Any

    def pixels(self, images: Iterable[Image.Image]) -> Float[np.ndarray, "b n m 3"]:
        """Preprocesses images, and returns them in our order of axes."""
        raise NotImplementedError

    def tokens(self, texts: Sequence[str], context_length: int) -> Int[np.ndarray, "b l"] | None:
        """Returns token ids; texts that are too long are cut. None if it has no tokenizer."""
        raise NotImplementedError

    def image_stages(
        self, images: Float[np.ndarray, "b n m 3"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """Returns the vision tower's hidden states in `names`, in the order of computation."""
        batch = self._images(images)
        return self._stages("image", names, lambda: self._encode_image(batch))

    def text_stages(
        self, tokens: Int[np.ndarray, "b l"], names: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """Returns the text tower's hidden states in `names`, in the order of computation."""
        batch = self._tokens(tokens)
        return self._stages("text", names, lambda: self._encode_text(batch))

    def logits(
        self, images: Float[np.ndarray, "i n m 3"], tokens: Int[np.ndarray, "t l"]
    ) -> Float[np.ndarray, "i t"]:
        """Returns the logits per image."""
        with self.torch.no_grad():
            return self._logits(self._images(images), self._tokens(tokens)).numpy()

    def _module(self, tower: Tower, name: str) -> str:
        """Returns the library's name of the module whose result is the hidden state `name`."""
        raise NotImplementedError

    def _layout(self, tower: Tower, name: str, x: np.ndarray) -> np.ndarray:
        """Returns a hidden state in our layout."""
        if x.ndim == 4:
            x = x.transpose(0, 2, 3, 1)
            # Our patch embedding returns a sequence.
            return x.reshape(len(x), -1, x.shape[-1]) if name == "conv1" else x
        return x

    def _encode_image(self, images: Any) -> Any:
        return self.model.encode_image(images)

    def _encode_text(self, tokens: Any) -> Any:
        return self.model.encode_text(tokens)

    def _logits(self, images: Any, tokens: Any) -> Any:
        raise NotImplementedError

    def _stages(
        self, tower: Tower, names: Iterable[str], encode: Callable[[], Any]
    ) -> dict[str, np.ndarray]:
        modules = dict(self.model.named_modules())
        stages: dict[str, np.ndarray] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                # A copy, because later modules may modify it in place.
                stages[name] = self._layout(tower, name, np.array(output.numpy()))

            return hook

        wanted = {name: self._module(tower, name) for name in names if name != "features"}
        if missing := [module for module in wanted.values() if module not in modules]:
            raise ValueError(
                f"the PyTorch model has no modules {missing}: not the same architecture"
            )
        hooks = [
            modules[module].register_forward_hook(keep(name)) for name, module in wanted.items()
        ]
        try:
            with self.torch.no_grad():
                stages["features"] = encode().numpy()
        finally:
            for hook in hooks:
                hook.remove()
        return stages

    def _images(self, images: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def _tokens(self, tokens: np.ndarray) -> Any:
        return self.torch.from_numpy(np.asarray(tokens, np.int64))
