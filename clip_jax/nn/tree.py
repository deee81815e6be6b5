"""A model's parameters as the public tree: nested dicts of string keys to arrays.

The keys are the official checkpoint's names, cut at the dots; the leaves have Flax's names
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

from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.memory import aligned_empty
from clip_jax.messages import some
from clip_jax.nn.clip import CLIP

Tree = Mapping[str, Any]

_MAX_LISTED = 20  # of a list of problems


def variables(model: CLIP) -> dict[str, nnx.Variable]:
    """Every parameter and statistic of `model` by its path, such as `visual/conv1/kernel`."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): variable for path, variable in flat}


def parameter_shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every array of the tree by its path; computes nothing."""
    # From its second on, all blocks of a sequence are alike: however many there are, two are built.
    shapes = {path: v.shape for path, v in variables(CLIP(_with_two_blocks(config))).items()}
    for sequence, count in blocks(config).items():
        second = f"{sequence}/1/"
        alike = {path: shape for path, shape in shapes.items() if path.startswith(second)}
        for i in range(2, count):
            for path, shape in alike.items():
                shapes[f"{sequence}/{i}/{path.removeprefix(second)}"] = shape
    return {path: shapes[path] for path in sorted(shapes, key=_in_order)}


def blocks(config: CLIPConfig) -> dict[str, int]:
    """How many blocks each sequence of them has, by its path."""
    vision = config.vision
    if isinstance(vision, ViTConfig):
        towers = {"visual/transformer/resblocks": vision.num_layers}
    else:
        towers = {f"visual/layer{i}": depth for i, depth in enumerate(vision.stage_depths, 1)}
    return {"transformer/resblocks": config.text.num_layers, **towers}


def check_blocks(config: CLIPConfig, num_arrays: int) -> None:
    """Refuses a number of blocks that would take long to list and that nobody can have meant.

    Raises:
        ValueError: the arrays can't fill half of the blocks.
    """
    num_blocks = sum(blocks(config).values())
    if num_blocks > max(num_arrays // 6, 100):  # a block has a dozen arrays
        raise ValueError(f"{num_arrays:,} arrays can't fill {num_blocks:,} blocks")


def _with_two_blocks(config: CLIPConfig) -> CLIPConfig:
    """The configuration with at most two blocks in each sequence."""
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig):
        vision = dataclasses.replace(vision, num_layers=min(vision.num_layers, 2))
    else:
        a, b, c, d = (min(depth, 2) for depth in vision.stage_depths)
        vision = dataclasses.replace(vision, stage_depths=(a, b, c, d))
    text = dataclasses.replace(text, num_layers=min(text.num_layers, 2))
    return dataclasses.replace(config, vision=vision, text=text)


def _in_order(path: str) -> list[tuple[int, str]]:
    # Flax's order: names by the alphabet, blocks by their number.
    return [(int(key), "") if key.isdigit() else (0, key) for key in path.split("/")]


def parameters(model: CLIP) -> dict[str, Any]:
    """The model's arrays as the public tree; the arrays are shared, not copied."""
    return unflatten({path: variable[...] for path, variable in variables(model).items()})


def set_parameters(model: CLIP, tree: Tree) -> None:
    """Fills `model` with the arrays of a public tree, as they are.

    Raises:
        ValueError: if arrays are missing, unexpected or misshapen; lists them all, and leaves the
            model as it was.
    """
    targets, arrays = variables(model), flatten(tree)
    if problems := misfits({path: v.shape for path, v in targets.items()}, arrays):
        raise ValueError(f"{len(problems)} parameters do not fit the model:\n{listed(problems)}")
    for path, variable in targets.items():
        variable.set_value(arrays[path])


def from_parameters(
    config: CLIPConfig,
    tree: Tree,
    *,
    dtype: DTypeLike = jnp.float32,
    precision: str = "highest",
) -> CLIP:
    """A model with the parameters of a public tree, cast to float32.

    Args:
        config: the architecture the tree belongs to.
        tree: nested dicts of NumPy or JAX arrays, in any float dtype.
        dtype: in which the towers compute.
        precision: of matrix products, for `jax.default_matmul_precision`.

    Raises:
        ValueError: lists every array that is missing, unexpected or misshapen.
    """
    model = CLIP(config, dtype=dtype, precision=precision)
    set_parameters(model, tree)
    for variable in variables(model).values():
        variable.set_value(_float32(variable.get_value()))
    return model


def cast(model: CLIP, dtype: DTypeLike) -> CLIP:
    """The model computing in `dtype`, with the parameters already in it that it casts on use.

    Its results are those of the same model with float32 parameters, in half the memory. For
    inference: the norms and the temperature stay float32, but rounded matrices can't be trained.
    """
    arrays = {path: variable[...] for path, variable in variables(model).items()}
    norms = {path.rpartition("/")[0] for path in arrays if path.endswith("/scale")}
    result = CLIP(model.config, dtype=dtype, precision=model.precision)
    for path, variable in variables(result).items():
        is_float32 = path == "logit_scale" or path.rpartition("/")[0] in norms
        variable.set_value(arrays[path] if is_float32 else arrays[path].astype(dtype))
    return result


def float32_copy(array: ArrayLike) -> np.ndarray:
    """A C-contiguous float32 copy in memory that a CPU device can adopt instead of copying it."""
    copy = aligned_empty(np.shape(array), np.float32)
    np.copyto(copy, np.asarray(array))
    return copy


def _float32(array: ArrayLike) -> jax.Array:
    if isinstance(array, jax.Array):
        return array if array.dtype == jnp.float32 else array.astype(jnp.float32)
    return jax.device_put(float32_copy(array))


def model_digest(model: CLIP) -> str:
    """SHA-256 of a model's configuration and parameters."""
    arrays = flatten(parameters(model))

    def digest(path: str) -> bytes:
        array = np.ascontiguousarray(arrays[path])
        head = f"{path} {array.dtype} {array.shape}\0".encode()
        return hashlib.sha256(head + array.tobytes()).digest()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing leaves Python's lock alone
        digests = pool.map(digest, sorted(arrays))
        return hashlib.sha256(model.config.to_json().encode() + b"".join(digests)).hexdigest()


def misfits(shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Any]) -> list[str]:
    """What keeps arrays from filling these shapes: missing (-), unexpected (+), misshapen (!)."""
    problems = [f"- {path}: missing" for path in shapes if path not in arrays]
    problems += [f"+ {path}: unexpected" for path in arrays if path not in shapes]
    problems += [
        f"! {path}: expected shape {tuple(shape)}. Got {np.shape(arrays[path])}"
        for path, shape in shapes.items()
        if path in arrays and np.shape(arrays[path]) != tuple(shape)
    ]
    return problems


def listed(problems: Sequence[str]) -> str:
    """Problems, one a line; of many the first ones and how many more there are."""
    return some(problems, most=_MAX_LISTED, between="\n")


def flatten(tree: Tree) -> dict[str, Any]:
    """Paths such as `visual/conv1/kernel` to arrays, from nested dicts."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, from paths to arrays; the inverse of `flatten`."""
    return traverse_util.unflatten_dict(arrays, sep="/")
