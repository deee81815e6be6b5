"""Two more independent CLIPs, as black boxes: open_clip and transformers."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import to_float

TOLERANCE = 1e-5  # relative; float32 sums in another order, measured 1e-6


def peer(name: str) -> Any:
    """The library; the test is skipped where it isn't installed."""
    if importlib.util.find_spec(name) is None or not reference.available():
        pytest.skip(f"{name} is not installed")
    reference.clip()  # also puts torchvision on its feet, which both import
    with quiet():
        return importlib.import_module(name)


def randomized(model: Any, seed: int = 0) -> Any:
    """Larger than the usual start, so that every array counts."""
    torch = reference.torch()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, array in model.named_parameters():
            noise = torch.empty_like(array).normal_(0, 0.1, generator=generator)
            array.copy_(1 + noise if re.search(r"(ln|norm)\w*\.weight$", name) else 0.5 * noise)
    return model.eval()


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The model's state dictionary as NumPy arrays."""
    return {name: array.numpy().copy() for name, array in model.state_dict().items()}


def nchw(images: np.ndarray) -> Any:
    """Pixels as PyTorch's models take them."""
    return reference.torch().from_numpy(np.array(to_float(images)).transpose(0, 3, 1, 2))


def ids(tokens: np.ndarray) -> Any:
    """Token ids as a tensor."""
    return reference.torch().from_numpy(np.asarray(tokens)).long()


TEXT = {
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 13,
    "vocab_size": 61,
    "eos_token_id": 59,
    "bos_token_id": 58,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 70,
    "intermediate_size": 99,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "image_size": 32,
    "patch_size": 8,
}


def build_huggingface(text: Any = (), vision: Any = ()) -> Any:
    """Transformers' model with these changes of its configuration, and random weights."""
    transformers = peer("transformers")
    with quiet():
        config = transformers.CLIPConfig(
            projection_dim=24,
            text_config={**TEXT, **dict(text)},
            vision_config={**VISION, **dict(vision)},
        )
        return randomized(transformers.CLIPModel(config))


def saved(model: Any, folder: Path) -> Path:
    """The folder that transformers writes."""
    with quiet():
        model.save_pretrained(folder)
    return folder


def some_tokens(end: int = 59) -> np.ndarray:
    """Rows of ids: ordinary ones, one with an id above the end, one without an end."""
    tokens = np.random.default_rng(0).integers(0, 57, (4, 13), np.int32)
    tokens[:3, 5] = end
    tokens[1, 3], tokens[1, 9], tokens[2, 9] = 60, 60, end
    return tokens
