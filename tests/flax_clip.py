"""Small models of Flax CLIP and their inputs, made by NumPy alone.

benchmarks/flax_clip_golden.py gives them to transformers 4, in an environment of its own, and the
tests to clip_jax.compat.
"""

import zlib
from typing import Any

import numpy as np

TEXT = {
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 11,
    "vocab_size": 61,
    "eos_token_id": 2,
    "bos_token_id": 58,
    "projection_dim": 20,
}
# The first position of an end token, another GELU, another epsilon.
TEXT_EOS = {**TEXT, "eos_token_id": 59, "hidden_act": "gelu", "layer_norm_eps": 1e-3}
VISION = {
    "hidden_size": 40,
    "intermediate_size": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "image_size": 24,
    "patch_size": 8,
    "hidden_act": "gelu_new",
    "projection_dim": 20,
}
# Parts of the paths of those arrays whose gradients are kept. Not the keys' bias, which has none:
# it adds the same to all scores of a query.
DIFFERENTIATED = ("position_embedding", "layers/1/self_attn/q_proj", "final_layer_norm")


def tokens() -> np.ndarray:
    """(4, 11) ids: ordinary rows, one with an id above the end, one without an end."""
    ids = np.random.default_rng(0).integers(0, 57, (4, 11), np.int32)
    ids[:3, 5] = 59
    ids[1, 3], ids[1, 9], ids[2, 9] = 60, 60, 59
    return ids


def mask() -> np.ndarray:
    """(4, 11): all, the first half, the second half (whose first rows see nothing), every other."""
    shown = np.ones((4, 11), np.int32)
    shown[1, 6:], shown[2, :5], shown[3, ::2] = 0, 0, 0
    return shown


def positions() -> np.ndarray:
    """(4, 11) positions in another order for each row."""
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(11) for _ in range(4)]).astype(np.int32)


def pixels() -> np.ndarray:
    """(3, 3, 24, 24) normalised pixels, channels first."""
    return np.random.default_rng(2).normal(size=(3, 3, 24, 24)).astype(np.float32)


def random_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array for a path of the tree, without a 0 or 1 that would hide a swap."""
    rng = np.random.default_rng(zlib.crc32(path.encode()))
    ending = path.rpartition("/")[2]
    if ending == "logit_scale":
        return np.float32(1.5)
    if ending == "scale":
        return rng.uniform(0.6, 1.4, shape).astype(np.float32)
    deviation = np.prod(shape[:-1]) ** -0.5 if ending == "kernel" else 0.3
    return rng.normal(0, deviation, shape).astype(np.float32)


def random_params(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """A tree of arrays by path, as nested dicts."""
    tree: dict[str, Any] = {}
    for path, shape in shapes.items():
        *modules, ending = path.split("/")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[ending] = random_array(path, shape)
    return tree
