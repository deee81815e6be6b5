"""The models of the rows, with random weights; small stand-ins of the same kinds for `--tiny`."""

from typing import Any

import numpy as np

from benchmarks.accelerator import keep
from clip_jax.catalog import lookup
from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

# In the order of their worth where there is a choice.
B32, L14, L14_336, B16, RN50 = "ViT-B/32", "ViT-L/14", "ViT-L/14@336px", "ViT-B/16", "RN50"

_TEXT = TextConfig(width=64, num_layers=2, num_heads=1)
_TINY = {
    B32: CLIPConfig(16, ViTConfig(32, 8, 64, num_layers=2, num_heads=1), _TEXT),
    B16: CLIPConfig(16, ViTConfig(48, 8, 64, num_layers=2, num_heads=1), _TEXT),
    L14: CLIPConfig(24, ViTConfig(40, 8, 128, num_layers=3, num_heads=2), _TEXT),
    L14_336: CLIPConfig(24, ViTConfig(56, 8, 128, num_layers=3, num_heads=2), _TEXT),
    RN50: CLIPConfig(16, ResNetConfig(64, 4, (1, 1, 1, 1), num_heads=2), _TEXT),
}


def config_of(name: str, tiny: bool) -> CLIPConfig:
    """The architecture of a name, or of its small stand-in."""
    return _TINY[name] if tiny else lookup(name).config


def label(name: str, tiny: bool) -> str:
    """What a row says of its model."""
    return f"tiny {name}" if tiny else name


def tokens_of(config: CLIPConfig) -> int | None:
    """The length of a Vision Transformer's sequences; None of a ResNet."""
    return config.vision.num_patches + 1 if isinstance(config.vision, ViTConfig) else None


def tree_of(name: str, tiny: bool) -> dict[str, Any]:
    """The parameters of a name, the same for all that compute with them."""
    from benchmarks.accelerator.weights import random_tree

    return keep.once(("tree", name), lambda: random_tree(config_of(name, tiny)))


def model_of(name: str, tiny: bool) -> Any:
    """Our model of a name, in float32, on the default device."""
    from clip_jax.nn import from_parameters

    def make() -> Any:
        return from_parameters(config_of(name, tiny), tree_of(name, tiny))

    return keep.once(("model", name), make)


def pixels_of(config: CLIPConfig, count: int) -> np.ndarray:
    """(count, n, n, 3) uint8 pixels, drawn."""
    n = config.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (count, n, n, 3), np.uint8)


def normalized(pixels: np.ndarray) -> np.ndarray:
    """What the models take as floats."""
    from clip_jax.nn import MEAN, STD

    x = pixels.astype(np.float32) / np.float32(255)
    return (x - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
