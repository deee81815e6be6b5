"""A model's parameters as the public tree: nested dicts of string keys to arrays.

The keys are the official checkpoint's names, split at the dots; the leaves have Flax's names
(`kernel`, `bias`, `scale`, `embedding`, `mean`, `var`) and JAX's layouts.
"""

import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.typing import ArrayLike, DTypeLike

from clip_jax.adaptation import differences
from clip_jax.config import CLIPConfig
from clip_jax.memory import float32_copy
from clip_jax.messages import some
from clip_jax.nn.clip import CLIP
from clip_jax.nn.siglip import build

Tree = Mapping[str, Any]


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Returns every parameter and statistic of `model` by path, such as `visual/conv1/kernel`."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): variable for path, variable in flat}


def parameters(model: nnx.Module) -> dict[str, Any]:
    """Returns the model's arrays as the public tree; the arrays are shared, not copied."""
    return unflatten({path: variable[...] for path, variable in variables(model).items()})


def set_parameters(model: nnx.Module, tree: Tree) -> None:
    """Fills `model` with the arrays of a public tree, without casting them.

    Raises:
        ValueError: arrays are missing, unexpected or misshapen; lists all of them. The model is
            then unchanged.
    """
    targets, arrays = variables(model), flatten(tree)
    if problems := misfits({path: v.shape for path, v in targets.items()}, arrays):
        raise ValueError(f"{len(problems)} parameters do not fit the model:\n{listed(problems)}")
    for path, variable in targets.items():
        variable.set_value(arrays[path])


def from_parameters(
    config: CLIPConfig, tree: Tree, *, dtype: DTypeLike = jnp.float32, precision: str = "highest"
) -> CLIP:
    """Builds a model with the parameters of a public tree, cast to float32.

    Args:
        config: the architecture the tree belongs to.
        tree: nested dicts of NumPy or JAX arrays, in any float dtype.
        dtype: dtype in which the towers compute.
        precision: for `jax.default_matmul_precision`.

    Raises:
        ValueError: arrays are missing, unexpected or misshapen; lists all of them.
    """
    model = build(config, dtype=dtype, precision=precision)
    set_parameters(model, tree)
    for variable in variables(model).values():
        variable.set_value(_float32(variable.get_value()))
    return model


def _float32(array: ArrayLike) -> jax.Array:
    if isinstance(array, jax.Array):
        return array if array.dtype == jnp.float32 else array.astype(jnp.float32)
    return jax.device_put(float32_copy(array))


def adaptations(model: CLIP) -> list[str]:
    """Describes layers and settings of a model that its configuration doesn't say."""
    plain = build(model.config, dtype=model.dtype, precision=model.precision)
    return differences(model, plain)


def check_unadapted(model: CLIP, otherwise: str) -> None:
    """Checks that a model is what its configuration and its arrays say, but for its own class.

    Args:
        model: the model.
        otherwise: what would become of it, such as "and would be loaded without them".

    Raises:
        ValueError: it has other layers or settings; lists them.
    """
    if own := [each for each in adaptations(model) if each.startswith("/")]:
        raise ValueError(
            f"the model has layers or settings that its configuration doesn't say, {otherwise}:\n"
            f"{listed(own)}"
        )


def model_digest(model: CLIP) -> str:
    """Returns the SHA-256 of a model's configuration and parameters, and of how it was adapted."""
    arrays = flatten(parameters(model))

    def digest(path: str) -> bytes:
        array = np.ascontiguousarray(arrays[path])
        head = f"{path} {array.dtype} {array.shape}\0".encode()
        return hashlib.sha256(head + array.tobytes()).digest()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        digests = pool.map(digest, sorted(arrays))
        # What doesn't change the model doesn't make another of it.
        config = dataclasses.replace(model.config, open_clip=None)
        own = "\n".join(adaptations(model))
        content = config.to_json().encode() + b"".join(digests) + own.encode()
        return hashlib.sha256(content).hexdigest()


def misfits(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Any]) -> list[str]:
    """Lists arrays that don't fit these shapes: missing (-), unexpected (+), misshapen (!)."""
    problems = [f"- {path}: missing" for path in shapes if path not in arrays]
    problems += [f"+ {path}: unexpected" for path in arrays if path not in shapes]
    problems += [
        f"! {path}: expected shape {tuple(shape)}. Got {np.shape(arrays[path])}"
        for path, shape in shapes.items()
        if path in arrays and np.shape(arrays[path]) != tuple(shape)
    ]
    return problems


def listed(problems: Sequence[str]) -> str:
    """Formats problems one per line; of many the first ones and the number of the others."""
    return some(problems, most=20, between="\n")


def flatten(tree: Tree) -> dict[str, Any]:
    """Turns nested dicts into a dict from paths, such as `visual/conv1/kernel`, to arrays."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a dict from paths to arrays into nested dicts; the inverse of `flatten`."""
    return traverse_util.unflatten_dict(arrays, sep="/")
