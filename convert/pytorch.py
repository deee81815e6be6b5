"""Converts official arrays to our parameter tree and back; each array must be used once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.config import Activation, CLIPConfig, NumHeads, check_activation
from clip_jax.convert.archive import shown
from clip_jax.convert.deviations import deviations
from clip_jax.convert.families import check_official
from clip_jax.convert.infer import infer_config
from clip_jax.convert.long_clip import with_one_table
from clip_jax.convert.parts import model_arrays
from clip_jax.convert.rules import RULES, source_to_target
from clip_jax.convert.table import check_arrays, from_tree, to_tree
from clip_jax.errors import CheckpointError
from clip_jax.messages import some
from clip_jax.nn.tree import listed
from clip_jax.shapes import check_blocks, parameter_shapes

EXAMPLES = "visual.conv1.weight, token_embedding.weight and so on"
# Three scalars of the official archives, which repeat what the shapes say.
IGNORED = ("input_resolution", "context_length", "vocab_size")


def from_pytorch(
    arrays: Mapping[str, np.ndarray],
    activation: Activation = "quick_gelu",
    num_heads: NumHeads | None = None,
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Converts an official checkpoint's arrays to a configuration and a parameter tree.

    Args:
        arrays: arrays by official (PyTorch) name, as from `read_checkpoint`; or below a prefix,
            such as Lightning's `model.`. The configuration is inferred from their shapes.
        activation: the activation of the transformers: `quick_gelu` in every OpenAI model; others
            for checkpoints of the same layout that were trained with them.
        num_heads: the attention heads of the vision tower, or of the vision and the text tower;
            by default they are 64 wide, as in every OpenAI model.

    Returns:
        The configuration, and nested dicts of arrays: views of `arrays` in our layouts, with their
        dtypes unchanged.

    Raises:
        CheckpointError: arrays are missing (-), unexpected (+) or of a wrong shape or dtype (!);
            lists all of them.
        TypeError: they are not NumPy arrays.
        ValueError: there is no such activation, or `num_heads` are no positive whole numbers.
    """
    check_activation(activation)
    check_arrays(arrays)
    arrays = {name: a for name, a in model_arrays(arrays).items() if name not in IGNORED}
    arrays = with_one_table(arrays)
    check_official(arrays)
    if arrays and not any(map(source_to_target, arrays)):
        raise CheckpointError(
            f"has none of a CLIP model's arrays, expected {EXAMPLES}; it has "
            f"{some(sorted(map(shown, arrays)), 5)}: check that it is the right file"
        )
    try:
        shapes = {name: array.shape for name, array in arrays.items()}
        config = infer_config(shapes, activation, num_heads)
    except CheckpointError as error:
        unknown = [f"+ {name}: unexpected" for name in arrays if source_to_target(name) is None]
        raise CheckpointError(f"{error}\n{listed(unknown)}".rstrip()) from None
    try:
        check_blocks(config, len(arrays))
    except ValueError as error:
        raise CheckpointError(f"the names of the arrays describe no CLIP model: {error}") from None
    return config, to_tree(parameter_shapes(config), arrays, RULES)


def to_pytorch(config: CLIPConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts a parameter tree to official names and layouts; exactly inverts `from_pytorch`.

    Args:
        config: the model's configuration.
        params: the tree, of NumPy or JAX arrays in any float dtype, which they keep.

    Returns:
        C-contiguous arrays by official name.

    Raises:
        CheckpointError: arrays are missing, unexpected or misshapen, or the model differs from
            OpenAI's architecture in what neither arrays nor their shapes say; lists all of it.
    """
    if lost := unofficial(config):
        raise CheckpointError(
            f"the official layout has no place for {', '.join(lost)}: keep the native folder, or "
            f"write another library's"
        )
    return from_tree(config, params, RULES)


def unofficial(config: CLIPConfig) -> list[str]:
    """Returns what of a model can't be told from an official file, nor said beside it."""
    said = {"resnet", "activation", "num_heads", "pixels", "tokenizer"}
    lost = {switch: what for switch, what in deviations(config).items() if switch not in said}
    text = config.text
    if (text.pooling, text.eos_id) == ("eos", text.vocab_size - 1):  # the largest id
        lost.pop("pooling")
    return list(lost.values())
