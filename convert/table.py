"""Turns arrays with a library's names into our parameter tree and back; each is used once."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from clip_jax.config import CLIPConfig
from clip_jax.convert.rules import Rule, Table, spelled, target_to_source
from clip_jax.errors import CheckpointError
from clip_jax.messages import counted
from clip_jax.nn import flatten, misfits, unflatten
from clip_jax.nn.tree import listed
from clip_jax.shapes import parameter_shapes

COUNTER = ".num_batches_tracked"


def check_arrays(arrays: Mapping[str, Any]) -> None:
    """Raises TypeError for what isn't an array, such as PyTorch's tensors."""
    for name, array in arrays.items():
        # JAX's arrays have NumPy's dtypes; PyTorch's tensors don't.
        if not isinstance(getattr(array, "dtype", None), np.dtype):
            raise TypeError(
                f"{name} must be a NumPy array. Got {type(array).__module__}."
                f"{type(array).__name__}: read the file with clip_jax.convert.read_checkpoint, or "
                f"give {{name: tensor.numpy(force=True) for name, tensor in state_dict.items()}}."
            )


def to_tree(
    targets: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    table: Table,
    notes: Collection[str] = (),
    description: str | None = None,
) -> dict[str, Any]:
    """Returns the parameter tree of a model whose arrays have another library's names.

    Args:
        targets: the shape of each array of the tree by path, as from `parameter_shapes`.
        arrays: arrays by their names, without any that are to be ignored.
        table: the library's names.
        notes: further problems, to be listed with those of the arrays.
        description: the file that describes the model, if not the arrays themselves do.

    Returns:
        Nested dicts of arrays in our layouts with their dtypes unchanged; views where possible.

    Raises:
        CheckpointError: arrays are missing (-), unexpected (+) or of a wrong shape or dtype (!);
            lists all of them.
    """
    problems, unused, tree = list(notes), set(arrays), dict[str, np.ndarray]()
    for path, shape in targets.items():
        rule, names = _rule_for(path, table)
        unused.difference_update(names)
        faults = [
            fault for name in names if (fault := _fault(name, rule.shape_to_theirs(shape), arrays))
        ]
        problems += faults
        if not faults:
            tree[path] = rule.to_ours(*(arrays[name] for name in names))
    problems += [f"+ {name}: unexpected" for name in unused]
    problems = list(dict.fromkeys(problems))  # several of ours may be parts of one of theirs
    if problems:
        raise CheckpointError(f"{_heading(problems, description)}\n{listed(sorted(problems))}")
    return unflatten(tree)


def from_tree(config: CLIPConfig, params: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """Returns C-contiguous arrays by a library's names; exactly inverts `to_tree`.

    Raises:
        CheckpointError: parameters are missing, unexpected or misshapen; lists all of them.
    """
    return from_targets(parameter_shapes(config), params, table)


def from_targets(
    targets: Mapping[str, tuple[int, ...]], params: Mapping[str, Any], table: Table
) -> dict[str, np.ndarray]:
    """Returns the arrays of a part of a model, such as a tower; as `from_tree`."""
    arrays = flatten(params)
    if problems := misfits(targets, arrays):
        heading = f"{len(problems)} parameters do not fit the configuration:"
        raise CheckpointError(f"{heading}\n{listed(problems)}")
    result: dict[str, np.ndarray] = {}
    joined: dict[str, dict[int, np.ndarray]] = {}
    for path in targets:
        rule, names = _rule_for(path, table)
        parts = rule.to_theirs(np.asarray(arrays[path]))
        number, count = rule.part
        if count > 1:
            there = joined.setdefault(names[0], {})
            there[number] = parts[0]
            if len(there) < count:
                continue
            parts = [np.concatenate([there[i] for i in range(count)])]
        result.update({n: _exported(n, part) for n, part in zip(names, parts, strict=True)})
    return result


def count_blocks(names: Collection[str], prefix: str) -> int:
    """Returns how many blocks the names of a tower's arrays have, by their highest number."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]{1,9})[./]")
    return max((int(match[1]) + 1 for name in names if (match := pattern.match(name))), default=0)


def _heading(problems: Collection[str], description: str | None) -> str:
    arrays = counted(len(problems), "array") + (" do" if len(problems) > 1 else " does")
    if description is None:
        return f"{arrays} not fit a CLIP checkpoint:"
    return (
        f"{arrays} not fit the model that {description} describes: one of the two is another "
        f"model's or was changed, so take the description and the weights from the same source:"
    )


def _rule_for(path: str, table: Table) -> tuple[Rule, list[str]]:
    match = target_to_source(path, table)
    assert match is not None, f"no rule makes {path}"
    rule, name = match
    return rule, spelled(name)


def _fault(name: str, shape: tuple[int, ...], arrays: Mapping[str, np.ndarray]) -> str | None:
    """Says what is wrong with the array of that name; None if it fits."""
    if name not in arrays:
        return f"- {name}: missing"
    array = arrays[name]
    if array.shape != shape:
        return f"! {name}: expected shape {shape}. Got {array.shape}"
    # NumPy doesn't count bfloat16 of ml_dtypes as a float.
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if is_float or (name.endswith(COUNTER) and array.dtype.kind in "iu"):
        return None
    kind = "an integer" if name.endswith(COUNTER) else "a float dtype"
    return f"! {name}: expected {kind}. Got {array.dtype}"


def _exported(name: str, array: np.ndarray) -> np.ndarray:
    if name.endswith(COUNTER):
        array = array.astype(np.int64)  # a model counts in float32
    # Contiguous, because safetensors scrambles other arrays; np.ascontiguousarray would make
    # scalars one-dimensional.
    return np.asarray(array, order="C")
