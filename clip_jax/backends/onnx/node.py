"""A primitive of JAX that stands for one operator of ONNX.

jax2onnx translates JAX's primitives one by one: a LayerNorm becomes ten operators, `x @ kernel` an
Einsum, and each reshape of a batch of any size a chain that computes its shape (jax2onnx 0.17.1).
A layer that knows its operator says it here; JAX computes the same by the function given with it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir

# The oldest set of operators that has all those used by name.
OPSET = 18

NODE = Primitive("clip_jax_onnx_node")


def node(
    operator: str,
    compute: Callable[..., Array],
    *inputs: Array | tuple[int, ...],
    **attributes: Any,
) -> Array:
    """Applies an operator of ONNX, which is that name in a graph and `compute` in JAX.

    Args:
        operator: its name in the set of operators `OPSET`.
        compute: takes the inputs that are arrays, and returns the same as the operator.
        inputs: the operator's inputs: arrays, or tuples of ints for constants such as shapes.
        attributes: the operator's attributes.
    """
    arrays = [x for x in inputs if not isinstance(x, tuple)]
    constants = tuple(x if isinstance(x, tuple) else None for x in inputs)
    return NODE.bind(
        *arrays,
        operator=operator,
        compute=compute,
        constants=constants,
        attributes=tuple(sorted(attributes.items())),
    )


@NODE.def_impl
def _compute(*arrays: Array, compute: Callable[..., Array], **_: Any) -> Array:
    with jax.numpy_rank_promotion("allow"):  # ONNX's operators broadcast as NumPy's do
        return compute(*arrays)


@NODE.def_abstract_eval
def _abstract(*avals: Any, compute: Callable[..., Array], **_: Any) -> Any:
    shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)
    with jax.numpy_rank_promotion("allow"):
        out = jax.eval_shape(compute, *shapes)
    return ShapedArray(out.shape, out.dtype)


mlir.register_lowering(NODE, mlir.lower_fun(_compute, multiple_results=False))
