"""Official arrays to our parameter tree and back: every array used once, or it is an error."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.config import Activation, CLIPConfig
from clip_jax.convert.infer import infer_config
from clip_jax.convert.rules import Rule, source_to_target, target_to_source
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, misfits, nest, parameter_shapes

# Three scalars of the official archives, which say again what the shapes say.
IGNORED = ("input_resolution", "context_length", "vocab_size")
COUNTER = ".num_batches_tracked"


def from_pytorch(
    arrays: Mapping[str, np.ndarray], activation: Activation = "quick_gelu"
) -> tuple[CLIPConfig, dict[str, Any]]:
    """The configuration and the parameter tree of an official checkpoint's arrays.

    Args:
        arrays: by official (PyTorch) name, such as `read_checkpoint` gives. The configuration is
            inferred from their shapes.
        activation: `quick_gelu` is that of every OpenAI model; name another for checkpoints of
            the same layout that were trained with it.

    Returns:
        The configuration, and nested dicts of arrays: views of `arrays` in our layouts, their
        dtypes untouched.

    Raises:
        CheckpointError: lists every array that is missing (-), unexpected (+) or of a wrong shape
            or dtype (!).
    """
    arrays = {name: array for name, array in arrays.items() if name not in IGNORED}
    renamed = {name: source_to_target(name) for name in arrays}
    unknown = [f"+ {name}: unexpected" for name, match in renamed.items() if match is None]
    try:
        config = infer_config({name: array.shape for name, array in arrays.items()}, activation)
    except CheckpointError as error:
        raise CheckpointError("\n".join([str(error), *unknown])) from None
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
        raise CheckpointError(
            f"{len(problems)} arrays do not fit a CLIP checkpoint:\n" + "\n".join(sorted(problems))
        )
    return config, nest({path: paths[path] for path in targets})


def to_pytorch(config: CLIPConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Official names and layouts from a parameter tree; the exact inverse of `from_pytorch`.

    Args:
        config: the model's configuration.
        params: the tree, of NumPy or JAX arrays in any float dtype, which they keep.

    Returns:
        C-contiguous arrays by official name.

    Raises:
        CheckpointError: lists every array that is missing, unexpected or misshapen.
    """
    targets, arrays = parameter_shapes(config), flatten(params)
    if problems := misfits(targets, arrays):
        heading = f"{len(problems)} parameters do not fit the configuration:"
        raise CheckpointError("\n".join([heading, *problems]))
    rules = {path: _rule_for(path) for path in targets}
    return {
        name: _exported(rule, name, np.asarray(arrays[path]))
        for path, (rule, name) in rules.items()
    }


def _rule_for(path: str) -> tuple[Rule, str]:
    match = target_to_source(path)
    assert match is not None, f"no rule makes {path}"
    return match


def _exported(rule: Rule, name: str, array: np.ndarray) -> np.ndarray:
    if name.endswith(COUNTER):
        array = array.astype(np.int64)  # a model counts in float32
    # Contiguous, because safetensors scrambles what isn't; np.ascontiguousarray would make
    # scalars one-dimensional.
    return np.asarray(rule.to_theirs(array), order="C")


def _has_fitting_dtype(name: str, array: np.ndarray) -> bool:
    # bfloat16 is ml_dtypes', which NumPy doesn't count as a float.
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return is_float or (name.endswith(COUNTER) and array.dtype.kind in "iu")


def _kind(name: str) -> str:
    return "an integer" if name.endswith(COUNTER) else "a float dtype"
