"""Converts official arrays to our parameter tree and back; each array must be used once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.config import Activation, CLIPConfig, check_activation
from clip_jax.convert.infer import infer_config
from clip_jax.convert.rules import Rule, source_to_target, target_to_source
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, misfits, unflatten
from clip_jax.nn.tree import listed
from clip_jax.shapes import check_blocks, parameter_shapes

# Three scalars of the official archives, which repeat what the shapes say.
IGNORED = ("input_resolution", "context_length", "vocab_size")
COUNTER = ".num_batches_tracked"
HUGGING_FACE = ("text_model.", "vision_model.")
NOT_HUGGING_FACE = (
    "has the layout of Hugging Face's transformers (text_model., vision_model.), which is not "
    "read: OpenAI's models load by their names, such as clip_jax.load('ViT-B/32'); of others give "
    "the checkpoint with the official layout, such as OpenCLIP's open_clip_model.safetensors"
)


def from_pytorch(
    arrays: Mapping[str, np.ndarray], activation: Activation = "quick_gelu"
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Converts an official checkpoint's arrays to a configuration and a parameter tree.

    Args:
        arrays: arrays by official (PyTorch) name, as from `read_checkpoint`. The configuration is
            inferred from their shapes.
        activation: the activation of the transformers: `quick_gelu` in every OpenAI model; others
            for checkpoints of the same layout that were trained with them.

    Returns:
        The configuration, and nested dicts of arrays: views of `arrays` in our layouts, with their
        dtypes unchanged.

    Raises:
        CheckpointError: arrays are missing (-), unexpected (+) or of a wrong shape or dtype (!);
            lists all of them.
        TypeError: they are not NumPy arrays.
        ValueError: there is no such activation.
    """
    check_activation(activation)
    _check_arrays(arrays)
    arrays = {name: array for name, array in arrays.items() if name not in IGNORED}
    if any(name.startswith(HUGGING_FACE) for name in arrays):
        raise CheckpointError(NOT_HUGGING_FACE)
    renamed = {name: source_to_target(name) for name in arrays}
    unknown = [f"+ {name}: unexpected" for name, match in renamed.items() if match is None]
    try:
        config = infer_config({name: array.shape for name, array in arrays.items()}, activation)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\n{listed(unknown)}".rstrip()) from None
    try:
        check_blocks(config, len(arrays))
    except ValueError as error:
        raise CheckpointError(f"the names of the arrays describe no CLIP model: {error}") from None
    targets = parameter_shapes(config)
    problems, paths = list(unknown), dict[str, np.ndarray]()
    for name, match in renamed.items():
        if match is None:
            continue
        rule, path = match
        if path not in targets:
            problems.append(f"+ {name}: unexpected")
            continue
        paths[path] = arrays[name]  # in PyTorch's layout until its shape is known to be right
        shape = rule.shape_to_theirs(targets[path])
        if arrays[name].shape != shape:
            problems.append(f"! {name}: expected shape {shape}. Got {arrays[name].shape}")
        elif not _has_fitting_dtype(name, arrays[name]):
            problems.append(f"! {name}: expected {_kind(name)}. Got {arrays[name].dtype}")
        else:
            paths[path] = rule.to_ours(arrays[name])
    problems += [f"- {_rule_for(path)[1]}: missing" for path in targets if path not in paths]
    if problems:
        heading = f"{len(problems)} arrays do not fit a CLIP checkpoint:"
        raise CheckpointError(f"{heading}\n{listed(sorted(problems))}")
    return config, unflatten({path: paths[path] for path in targets})


def to_pytorch(config: CLIPConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts a parameter tree to official names and layouts; exactly inverts `from_pytorch`.

    Args:
        config: the model's configuration.
        params: the tree, of NumPy or JAX arrays in any float dtype, which they keep.

    Returns:
        C-contiguous arrays by official name.

    Raises:
        CheckpointError: arrays are missing, unexpected or misshapen; lists all of them.
    """
    targets, arrays = parameter_shapes(config), flatten(params)
    if problems := misfits(targets, arrays):
        heading = f"{len(problems)} parameters do not fit the configuration:"
        raise CheckpointError(f"{heading}\n{listed(problems)}")
    rules = {path: _rule_for(path) for path in targets}
    return {
        name: _exported(rule, name, np.asarray(arrays[path]))
        for path, (rule, name) in rules.items()
    }


def _check_arrays(arrays: Mapping[str, Any]) -> None:
    for name, array in arrays.items():
        # JAX's arrays have NumPy's dtypes; PyTorch's tensors don't.
        if not isinstance(getattr(array, "dtype", None), np.dtype):
            raise TypeError(
                f"{name} must be a NumPy array. Got {type(array).__module__}."
                f"{type(array).__name__}: read the file with clip_jax.convert.read_checkpoint, or "
                f"give {{name: tensor.numpy(force=True) for name, tensor in state_dict.items()}}."
            )


def _rule_for(path: str) -> tuple[Rule, str]:
    match = target_to_source(path)
    assert match is not None, f"no rule makes {path}"
    return match


def _exported(rule: Rule, name: str, array: np.ndarray) -> np.ndarray:
    if name.endswith(COUNTER):
        array = array.astype(np.int64)  # a model counts in float32
    # Contiguous, because safetensors scrambles other arrays; np.ascontiguousarray would make
    # scalars one-dimensional.
    return np.asarray(rule.to_theirs(array), order="C")


def _has_fitting_dtype(name: str, array: np.ndarray) -> bool:
    # NumPy doesn't count bfloat16 of ml_dtypes as a float.
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return is_float or (name.endswith(COUNTER) and array.dtype.kind in "iu")


def _kind(name: str) -> str:
    return "an integer" if name.endswith(COUNTER) else "a float dtype"
