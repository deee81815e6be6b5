"""Models that a user has adapted: of a class of her own, or with layers in place of ours.

Faster layers stand for ours only; such a model is computed as it is.
"""

from collections.abc import Iterator

import numpy as np
from flax import nnx

from clip_jax.nn import CLIP, build
from clip_jax.nn.tree import variables

_PACKAGE = __name__.partition(".")[0]


def is_plain(model: CLIP) -> bool:
    """Whether a model has the layers and arrays that its configuration says, and no others."""
    if any(type(module).__module__.partition(".")[0] != _PACKAGE for module in _modules(model)):
        return False
    plain = variables(build(model.config, dtype=model.dtype, precision=model.precision))
    return variables(model).keys() == plain.keys()


def adapted_copy(model: CLIP, dtype: np.dtype) -> CLIP:
    """Returns a copy that shares the arrays, and computes in `dtype`."""
    copy = nnx.clone(model)
    copy.dtype = dtype
    return copy


def _modules(module: nnx.Module) -> Iterator[nnx.Module]:
    yield module
    for value in vars(module).values():
        inner = value if isinstance(value, (nnx.List, list, tuple)) else [value]
        for part in inner:
            if isinstance(part, nnx.Module) and not isinstance(part, nnx.List):
                yield from _modules(part)
