"""What of a model isn't as its configuration says: layers, methods and settings of a user's own."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

_PACKAGE = __name__.partition(".")[0]


def differences(given: nnx.Module, plain: nnx.Module) -> list[str]:
    """Describes classes other than ours, and settings other than those of a model of ours.

    Arrays aren't compared. Training mode is no setting.
    """
    return list(_differences(given, plain, ""))


def image_features(model: Any, images: Array) -> Array:
    """Returns a model's embeddings of images, by its own `encode_image` if it has one."""
    if _is_overridden(model, "encode_image"):
        return model.encode_image(images)
    return model.image_features(images)


def text_features(model: Any, tokens: Array) -> Array:
    """Returns a model's embeddings of texts, by its own `encode_text` if it has one."""
    if _is_overridden(model, "encode_text"):
        return model.encode_text(tokens)
    return model.text_features(tokens, model.dtype)


def _is_overridden(model: nnx.Module, method: str) -> bool:
    return not _is_ours(getattr(type(model), method))


def _differences(given: Any, plain: Any, path: str) -> Iterator[str]:
    if isinstance(given, (nnx.List, list, tuple)):
        matching = plain if isinstance(plain, (nnx.List, list, tuple)) else ()
        pairs = itertools.zip_longest(given, matching)
        for number, (inner, expected) in enumerate(pairs):
            yield from _differences(inner, expected, f"{path}/{number}")
    elif isinstance(given, nnx.Module):
        names = vars(given).keys()
        if not _is_ours(type(given)):
            yield f"{path}: {_described(type(given))}"
        elif plain is not None:  # a faster layer of ours may have more
            names &= vars(plain).keys()
        # Flax's own state, and the mode, aren't settings.
        for name in sorted(names - {"use_running_average"}):
            if not name.startswith("_"):
                inner = getattr(given, name)
                yield from _differences(inner, getattr(plain, name, None), f"{path}/{name}")
    elif isinstance(given, nnx.Variable | jax.Array | np.ndarray):
        return
    elif given is not plain and given != plain:
        yield f"{path}: {_described(given)}"


def _described(value: Any) -> str:
    """Returns a text that is the same in every process."""
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _is_ours(thing: Any) -> bool:
    return thing.__module__.partition(".")[0] == _PACKAGE
