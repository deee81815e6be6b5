"""PyTorch's contenders for images, eager and compiled, on the device and from the host."""

import dataclasses

import numpy as np

from benchmarks.accelerator import keep, models
from benchmarks.accelerator.names import COMPILED, COMPILED_HOST, EAGER, REDUCED
from benchmarks.accelerator.timing import Contender


def contender_of(
    name: str, contender: str, pixels: np.ndarray, dtype: str, tiny: bool, precision: str = ""
) -> Contender:
    """A contender over a batch.

    Args:
        name: of the model.
        contender: which.
        pixels: the batch.
        dtype: in which to compute.
        tiny: whether the model's small stand-in.
        precision: that the caller has set, of which each has a compiled program of its own.

    Raises:
        NotHere: PyTorch, or what has the model, isn't installed.
    """
    from benchmarks.accelerator import ours, peers

    is_resnet = name == models.RN50
    if is_resnet:
        function = peers.resnet(dtype)
        if tiny:  # of which timm has no model
            pixels = np.zeros((len(pixels), 224, 224, 3), np.uint8)
    else:
        function = peers.image_features(peers.model_of(name, tiny, dtype))
    if contender == EAGER:
        made = peers.on_device(contender, function, peers.planes(pixels, dtype))
        return _without_features(made) if is_resnet else made
    mode = "reduce-overhead" if contender == REDUCED else None

    compiled = keep.once(
        ("compiled", name, dtype, precision, mode, len(pixels)),
        lambda: peers.compiled(function, tiny, mode),
    )
    if contender == COMPILED_HOST:
        encode = peers.over_pixels(compiled, dtype)
        return ours.from_host(contender, encode, pixels)
    assert contender in (COMPILED, REDUCED)
    planes = peers.planes(pixels, dtype)
    made = peers.on_device(contender, compiled, planes, compiles=True)
    return _without_features(made) if is_resnet else made


def _without_features(contender: Contender) -> Contender:
    """Of weights of its own, which nothing is to be compared with."""
    return dataclasses.replace(contender, features=None)
