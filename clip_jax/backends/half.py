"""A model for inference in half precision, which holds its parameters in it."""

from jax.typing import DTypeLike

from clip_jax.nn import CLIP
from clip_jax.nn.tree import variables


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
