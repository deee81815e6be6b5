"""Finds the arrays of a model among those of what it is a part of, by their common prefix."""

import warnings
from collections.abc import Mapping
from typing import TypeVar

from clip_jax.convert.archive import shown
from clip_jax.errors import CheckpointError
from clip_jax.messages import counted, some

# A name that each layout's model has once. Both towers' are asked, so that a tower that another
# model has besides is no second model.
OPENAI = ("visual.conv1.weight", "token_embedding.weight")
HUGGING_FACE = (
    "vision_model.embeddings.patch_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
)

_TEXT = "text."  # OpenCLIP's models with a text tower of its own class have its names below this
# What averages of weights count beside them.
_COUNTERS = {"n_averaged", "num_updates", "initted", "step", "decay"}
_Value = TypeVar("_Value")


def model_arrays(
    arrays: Mapping[str, _Value], marks: tuple[str, str] = OPENAI
) -> Mapping[str, _Value]:
    """Returns the arrays of the one model that has these names, without a prefix they share.

    Lightning and other programs keep the model as a part, such as `model.` or `net.`. What lies
    beside it, such as a loss with weights, is left out with a warning.

    Args:
        arrays: arrays by name.
        marks: the names of an array of the image tower, and of one of the text tower.

    Returns:
        The arrays by their own names; all of them if they have no prefix.

    Raises:
        CheckpointError: there are several models; names their prefixes.
    """
    prefixes = _prefixes(arrays, marks[0]) & (
        _prefixes(arrays, marks[1]) | _prefixes(arrays, _TEXT + marks[1])
    )
    if len(prefixes) > 1:
        told = [
            f"{shown(prefix) or 'no prefix'}: {sum(n.startswith(prefix) for n in arrays):,} arrays"
            for prefix in sorted(prefixes)
        ]
        raise CheckpointError(
            f"holds {len(prefixes)} models ({some(told, 5)}), expected one: give "
            f"clip_jax.convert.from_pytorch the arrays of the one that is meant, as "
            f"clip_jax.convert.read_checkpoint returns them, without its prefix"
        )
    prefix = next(iter(prefixes), "")
    if not prefix:
        return arrays
    rest = [n for n in arrays if not n.startswith(prefix) and n not in _COUNTERS]
    if rest:
        warnings.warn(
            f"{counted(len(rest), 'array')} beside the model in {prefix}* "
            f"{'are' if len(rest) > 1 else 'is'} left out: {some(map(shown, rest), 5)}",
            stacklevel=2,
        )
    return {n.removeprefix(prefix): value for n, value in arrays.items() if n.startswith(prefix)}


def _prefixes(names: Mapping[str, object], mark: str) -> set[str]:
    """Returns what stands before the mark in names that end with it."""
    return {n.removesuffix(mark) for n in names if n == mark or n.endswith(f".{mark}")}
