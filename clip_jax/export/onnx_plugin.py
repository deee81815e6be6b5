"""Teaches jax2onnx the primitive by which layers name an operator of ONNX."""

from typing import Any

import onnx_ir as ir  # pyright: ignore[reportMissingImports]
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive  # pyright: ignore[reportMissingImports]

from clip_jax.backends.onnx.node import NODE

# Operators whose result is int64; JAX has int32 there, and in what is made of it.
INT64 = ("ArgMax", "Shape")


@register_primitive(jaxpr_primitive=NODE.name)
class NodePlugin(PrimitiveLeafPlugin):
    """Puts the named operator into the graph."""

    def lower(self, ctx: Any, eqn: Any) -> None:
        """Writes one operation of JAX as one of ONNX."""
        operator, constants = eqn.params["operator"], eqn.params["constants"]
        arrays = [ctx.get_value_for_var(x, name_hint=ctx.fresh_name("x")) for x in eqn.invars]
        remaining = iter(arrays)
        inputs = [
            next(remaining)
            if constant is None
            else ctx.builder.const_i64(ctx.fresh_name("sides"), list(constant))
            for constant in constants
        ]
        (outvar,) = eqn.outvars
        value = ctx.get_value_for_var(outvar, name_hint=ctx.fresh_name(operator))
        attributes = {
            k: list(v) if isinstance(v, tuple) else v for k, v in eqn.params["attributes"]
        }
        result = getattr(ctx.builder, operator)(*inputs, _outputs=[value.name], **attributes)
        wide = operator in INT64 or any(x.dtype == ir.DataType.INT64 for x in arrays)
        is_wide = wide and value.dtype == ir.DataType.INT32
        result.type = ir.TensorType(ir.DataType.INT64) if is_wide else value.type
        result.shape = value.shape
        ctx.bind_value_for_var(outvar, result)
