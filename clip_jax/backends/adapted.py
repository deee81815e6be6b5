"""Models that a user has adapted: of a class of her own, or with layers in place of ours.

Faster layers stand for ours only; such a model is computed as it is.
"""

import numpy as np
from flax import nnx

from clip_jax.nn import CLIP, build
from clip_jax.nn.tree import adaptations, variables


def is_plain(model: CLIP) -> bool:
    """Whether a model has exactly the layers, settings and arrays that its configuration says."""
    if adaptations(model):
        return False
    plain = build(model.config, dtype=model.dtype, precision=model.precision)
    return variables(model).keys() == variables(plain).keys()


def adapted_copy(model: CLIP, dtype: np.dtype) -> CLIP:
    """Returns a copy that shares the arrays, and computes in `dtype`."""
    copy = nnx.clone(model)
    copy.dtype = dtype
    return copy
