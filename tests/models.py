"""Small models for the tests; every dimension differs from every other that could be its swap."""

import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.nn import CLIP, MEAN, STD, build, from_parameters, unflatten
from clip_jax.shapes import parameter_shapes

GOLDEN = Path(__file__).parent / "golden"

TEXT = TextConfig(width=128, num_layers=3, num_heads=2, context_length=77, vocab_size=49408)
TINY_VIT = CLIPConfig(
    embed_dim=24,
    vision=ViTConfig(image_size=48, patch_size=16, width=192, num_layers=4, num_heads=3),
    text=TEXT,
)
TINY_RESNET = CLIPConfig(
    embed_dim=24,
    vision=ResNetConfig(image_size=96, width=8, stage_depths=(1, 2, 3, 1), num_heads=4),
    text=TEXT,
)
# A text tower so small that tests which only need some model are quick.
SMALL_TEXT = TextConfig(width=64, num_layers=2, num_heads=1)
SMALL_VIT = CLIPConfig(
    embed_dim=16,
    vision=ViTConfig(image_size=32, patch_size=8, width=64, num_layers=2, num_heads=1),
    text=SMALL_TEXT,
)
SMALL_RESNET = CLIPConfig(
    embed_dim=16,
    vision=ResNetConfig(image_size=64, width=4, stage_depths=(1, 1, 1, 1), num_heads=2),
    text=SMALL_TEXT,
)


def unsaid(config: CLIPConfig) -> dict:
    """What a bare file of this model doesn't say, as arguments of `load`."""
    heads = (config.vision.num_heads, config.text.num_heads)
    return {"activation": config.activation, "num_heads": heads}


def unsaid_options(config: CLIPConfig) -> list[str]:
    """The same on the command line."""
    heads = f"{config.vision.num_heads},{config.text.num_heads}"
    return ["--activation", config.activation, "--num-heads", heads]


def fresh(config: CLIPConfig, seed: int = 0) -> CLIP:
    """A model with published initialisation."""
    return build(config, rngs=nnx.Rngs(seed))


def small(config: CLIPConfig, seed: int = 0, **options) -> CLIP:
    """A model with random parameters, which are quicker to come by than fresh ones."""
    return from_parameters(config, random_parameters(config, seed), **options)


def random_parameters(config: CLIPConfig, seed: int = 0) -> dict:
    """A new tree of NumPy arrays without a 0 or 1 that would hide a swap."""
    return unflatten(_random_arrays(config, seed))


@functools.cache
def _random_arrays(config: CLIPConfig, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for path, shape in parameter_shapes(config).items():
        if path.endswith("/var"):
            arrays[path] = rng.uniform(0.5, 1.5, shape)
        elif path.endswith("/num_batches_tracked"):
            arrays[path] = 1000
        elif path.endswith("/scale"):
            # The last gain of a bottleneck is small, or the sum would grow with the depth.
            last = "/layer" in path and "/bn3/" in path
            arrays[path] = rng.uniform(*((0.1, 0.3) if last else (0.6, 1.4)), shape)
        elif path.endswith("embedding"):
            arrays[path] = rng.normal(0, 0.3, shape)
        elif len(shape) > 1:
            # A ReLU halves the second moment of what convolutions see.
            gain = 2 if len(shape) == 4 else 1
            arrays[path] = rng.normal(0, (gain / np.prod(shape[:-1])) ** 0.5, shape)
        else:
            arrays[path] = rng.normal(0, 0.1, shape)
    arrays["logit_scale"] = np.log(100)
    for path, array in arrays.items():
        arrays[path] = np.asarray(array, np.int64 if path.endswith("_tracked") else np.float32)
        arrays[path].flags.writeable = False  # they are cached
    return arrays


def random_images(n: int, size: int, seed: int = 0) -> np.ndarray:
    """(n, size, size, 3) uint8 pixels."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)


def random_tokens(n: int, length: int = 77, seed: int = 0) -> np.ndarray:
    """(n, length) int32 captions of mixed lengths: start, ids (0 among them), end, zeros."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((n, length), np.int32)
    for row in tokens:
        words = rng.integers(0, length - 1)
        row[0] = 49406
        row[1 : 1 + words] = rng.integers(0, 49406, words)
        row[1 + words] = 49407
    return tokens


def relative_error(given, expected) -> float:
    """L2 of the difference over L2 of what is expected, in float64."""
    given, expected = np.asarray(given, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(given - expected) / np.linalg.norm(expected))


def official_shapes() -> dict[str, dict[str, tuple[tuple[int, ...], str]]]:
    """Name, shape and stored dtype of every array of the nine official checkpoints."""
    document = json.loads(gzip.decompress((GOLDEN / "state_dict_shapes.json.gz").read_bytes()))
    return {
        model: {name: (tuple(shape), dtype) for name, (shape, dtype) in arrays.items()}
        for model, arrays in document.items()
    }


def reference_numbers(config: CLIPConfig) -> dict:
    """The arguments of the reference's constructor for `config`."""
    vision = config.vision
    is_vit = isinstance(vision, ViTConfig)
    return {
        "embed_dim": config.embed_dim,
        "image_resolution": vision.image_size,
        "vision_layers": vision.num_layers if is_vit else vision.stage_depths,
        "vision_width": vision.width,
        "vision_patch_size": vision.patch_size if is_vit else None,
        "context_length": config.text.context_length,
        "vocab_size": config.text.vocab_size,
        "transformer_width": config.text.width,
        "transformer_heads": config.text.num_heads,
        "transformer_layers": config.text.num_layers,
    }


def to_float(pixels: np.ndarray) -> jax.Array:
    """Normalised floats from pixels, by NumPy."""
    x = pixels.astype(np.float32) / np.float32(255)
    return jnp.asarray((x - np.float32(MEAN)) / np.float32(STD))
