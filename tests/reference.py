"""The PyTorch reference as a black box: the only file that imports `clip`, torch or torchvision.

Everything is imported at first use, so that a test file may import this one where torch is not
installed. The reference is run, never read.
"""

import copy
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from clip_jax.parity.reference import import_reference, quiet

_PACKAGES = ("torch", "torchvision", "clip")


def available() -> bool:
    """Whether torch, torchvision and `clip` are installed (they are not imported to find out)."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def requires_reference(test: Callable) -> Callable:
    """Mark a test or class as a comparison with PyTorch; it is skipped where that is missing."""
    missing = pytest.mark.skipif(not available(), reason="the PyTorch reference is not installed")
    return pytest.mark.torch(missing(test))


@functools.cache
def clip() -> Any:
    """The reference's `clip` module, put on its feet by what `clip-jax parity` uses too."""
    module = import_reference()
    with quiet():
        importlib.import_module("clip.model")
    return module


@functools.cache
def torch() -> Any:
    """The torch module; a test is skipped where it is not installed."""
    with quiet():
        return pytest.importorskip("torch")


# --- models


def build(numbers: Mapping[str, Any]) -> Any:
    """The reference's model in float32, eval mode, with the reference's own random start.

    Args:
        numbers: the constructor's arguments: `embed_dim, image_resolution, vision_layers` (an int
            for a ViT, four of them for a ResNet), `vision_width, vision_patch_size` (None for a
            ResNet), `context_length, vocab_size, transformer_width, transformer_heads,
            transformer_layers`.
    """
    with quiet(), torch().random.fork_rng(devices=[]):
        torch().manual_seed(0)
        return clip().model.CLIP(**numbers).float().eval()


def randomize(model: Any, seed: int) -> Any:
    """Fill a model in place with weights of trained scale, so that no swap goes unnoticed.

    Gains, biases and BatchNorm statistics are all different from 0 and 1; matrices keep the
    variance of what passes through them, so that outputs stay of order 1 at any depth.
    """
    generator = torch().Generator().manual_seed(seed)

    def normal(tensor: Any, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch().no_grad():
        for name, tensor in {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }.items():
            owner, _, leaf = name.rpartition(".")
            layer = owner.rpartition(".")[2]
            is_norm = layer.startswith(("bn", "ln")) or owner.endswith("downsample.1")
            if name == "logit_scale":
                tensor.fill_(4.6052)  # ln 100, as trained
            elif leaf == "running_mean":
                normal(tensor, 0.15)
            elif leaf == "running_var":
                uniform(tensor, 0.5, 1.5)
            elif leaf == "num_batches_tracked":
                tensor.fill_(1000)
            elif is_norm and leaf == "weight":
                # the last gain of a bottleneck is small, or the residual sum would grow with depth
                is_last = layer == "bn3" and ".layer" in name
                uniform(tensor, *((0.15, 0.35) if is_last else (0.6, 1.4)))
            elif leaf.endswith("bias"):
                normal(tensor, 0.1)
            elif leaf in ("class_embedding", "positional_embedding") or layer == "token_embedding":
                normal(tensor, 0.2)
            elif leaf in ("proj", "text_projection"):
                normal(tensor, tensor.shape[0] ** -0.5)
            elif tensor.ndim == 4:  # convolutions; a ReLU halves the second moment of its input
                normal(tensor, (2.0 / tensor[0].numel()) ** 0.5)
            else:
                normal(tensor, tensor.shape[1] ** -0.5)
    return model


# --- files


# What official archives store in float16 (state_dict_shapes.json of the specification).
_FLOAT16 = re.compile(
    r"(^text_projection|^visual\.proj|in_proj_weight|in_proj_bias"
    r"|(c_fc|c_proj|out_proj|q_proj|k_proj|v_proj)\.(weight|bias)"
    r"|conv\d\.weight|downsample\.0\.weight)$"
)


def save_torchscript(model: Any, path: str | Path, half: bool = True) -> None:
    """Write a model as the official files are: a traced TorchScript archive, partly float16.

    The graph is traced in float32 and the arrays are cast afterwards, because float16 does not
    run everywhere on CPUs; so the archive holds the right arrays, and the reference loads it with
    `clip.load(path, device="cpu", jit=False)`, but its code is not meant to be run.
    """
    size = model.visual.input_resolution
    scalars = {
        "input_resolution": size,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    model = copy.deepcopy(model).eval()
    images = torch().zeros(1, 3, size, size)
    tokens = torch().zeros(1, model.context_length, dtype=torch().int64)
    inputs = {"forward": (images, tokens), "encode_image": images, "encode_text": tokens}
    with quiet(), torch().no_grad():
        for name, value in scalars.items():
            if hasattr(model, name):
                delattr(model, name)
            model.register_buffer(name, torch().tensor(value))
        traced = torch().jit.trace_module(model, inputs, check_trace=False)
        if half:
            for name, parameter in traced.named_parameters():
                if _FLOAT16.search(name):
                    parameter.data = parameter.data.half()
        torch().jit.save(traced, str(path))


def save_state_dict(model: Any, path: str | Path) -> None:
    """Write a model as `torch.save(model.state_dict(), path)` does."""
    with quiet():
        torch().save(model.state_dict(), str(path))


def load(path: str | Path) -> tuple[Any, Any]:
    """The reference's own `clip.load` on the CPU: `(model, preprocess)`, without its warnings.

    It rounds conv, linear, attention and projection arrays to float16 on the way, also those of a
    file that holds them in float32.
    """
    with quiet():
        return clip().load(str(path), device="cpu", jit=False)
