"""Swaps layers inside a model for others with the same interface."""

from collections.abc import Callable
from typing import Any

from flax import nnx


def swap_layers(model: nnx.Module, replacement: Callable[[nnx.Module], nnx.Module | None]) -> None:
    """Replaces layers of a model in place.

    Args:
        model: the model, walked from the leaves to the root, so that `replacement` sees a layer
            after its inner layers have been replaced.
        replacement: returns the layer to put in place of the given one; None keeps it.
    """
    for holder, key, layer in _places(model):
        swap_layers(layer, replacement)
        new = replacement(layer)
        if new is None:
            continue
        if isinstance(holder, nnx.List):
            holder[key] = new
        else:
            setattr(holder, key, new)


def adopt(new: nnx.Module, layer: nnx.Module) -> None:
    """Gives `new` the attributes of `layer`: its settings, arrays and inner layers, shared."""
    for name, value in vars(layer).items():
        if not name.startswith("_"):  # Flax's own state of the object
            setattr(new, name, value)


def _places(module: nnx.Module) -> list[tuple[Any, Any, nnx.Module]]:
    """Lists a module's direct submodules, each with its holder and its attribute or index."""
    places: list[tuple[Any, Any, nnx.Module]] = []
    for name, value in vars(module).items():
        if isinstance(value, nnx.List):
            places += [(value, i, x) for i, x in enumerate(value) if isinstance(x, nnx.Module)]
        elif isinstance(value, nnx.Module):
            places.append((module, name, value))
    return places
