"""What JAX's modes ask of the arrays that a caller gives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def check_axes(
    array: Array, name: str, otherwise: str = "call the model in jax.sharding.auto_axes"
) -> None:
    """Raises ValueError for an array that is split over axes whose type is Explicit.

    Args:
        array: the array.
        name: what it is called in the message.
        otherwise: what to do with such a mesh, for the message.
    """
    spec = jax.typeof(array).sharding.spec  # of axes of other types it says nothing
    if any(axis is not None for axis in spec):
        raise ValueError(
            f"{name} are split over a mesh whose axes are Explicit, {spec}, expected Auto: "
            f"clip_jax never says where an array lies. Make the mesh with axis_types="
            f"(jax.sharding.AxisType.Auto,) for each axis, or {otherwise}."
        )


def for_layers(array: np.ndarray | Array) -> np.ndarray | Array:
    """Returns JAX's array where no jit makes one of NumPy's: layers run on JAX's alone."""
    is_traced = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    return array if is_traced else jnp.asarray(array)
