"""Models for inference that keep their parameters in half precision."""

from jax.typing import DTypeLike

from clip_jax.nn import CLIP, build
from clip_jax.nn.tree import check_unadapted, variables


def cast(model: CLIP, dtype: DTypeLike) -> CLIP:
    """Returns a copy of the model that computes in `dtype` and keeps its parameters in it.

    Its results are those of the same model with float32 parameters, in half the memory. Norms,
    temperature and logits' bias stay float32. It is for inference only: rounded matrices can't be
    trained.

    Raises:
        ValueError: the model has layers or settings that its configuration doesn't say.
    """
    check_unadapted(model, "and would compute without them")
    arrays = {path: variable[...] for path, variable in variables(model).items()}
    norms = {path.rpartition("/")[0] for path in arrays if path.endswith("/scale")}
    result = build(model.config, dtype=dtype, precision=model.precision)
    for path, variable in variables(result).items():
        is_float32 = path in ("logit_scale", "logit_bias") or path.rpartition("/")[0] in norms
        variable.set_value(arrays[path] if is_float32 else arrays[path].astype(dtype))
    return result
