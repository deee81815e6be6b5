"""Exchange of layers inside a model for others of the same interface."""

from collections.abc import Callable
from typing import Any

from flax import nnx


def swap_layers(model: nnx.Module, replacement: Callable[[nnx.Module], nnx.Module | None]) -> None:
    """Puts other layers in the places of some of a model's, in place.

    Args:
        model: is walked from the leaves to the root, so that a layer is asked about after the
            layers inside of it have been exchanged.
        replacement: gives the layer to put in the place of another; None leaves it.
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
        if not name.startswith("_"):  # what Flax keeps of the object itself
            setattr(new, name, value)


def _places(module: nnx.Module) -> list[tuple[Any, Any, nnx.Module]]:
    """Where a module holds others: the holder, the attribute or index, and the module there."""
    places: list[tuple[Any, Any, nnx.Module]] = []
    for name, value in vars(module).items():
        if isinstance(value, nnx.List):
            places += [(value, i, x) for i, x in enumerate(value) if isinstance(x, nnx.Module)]
        elif isinstance(value, nnx.Module):
            places.append((module, name, value))
    return places
