"""Attention by cuDNN's fused kernel, for half precision on NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.backends.pooled_row import RowAttention
from clip_jax.nn.layers import RowIds, split_heads


class CudnnAttention(RowAttention):
    """`Attention` whose scores never reach the GPU's memory; pooled rows use XLA's attention."""

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, rows: RowIds | None = None
    ) -> Float[Array, "b r w"]:
        if rows is not None:
            return super().__call__(x, is_causal=is_causal, rows=rows)
        # Three products, since cuDNN's kernel needs q, k and v apart: slices of a joint product
        # would be copies, which take as long as a third of the product.
        kernels = jnp.split(self.in_proj.kernel[...].astype(x.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj.bias[...].astype(x.dtype), 3)
        q, k, v = (
            split_heads(x @ kernel + bias, self.num_heads)
            for kernel, bias in zip(kernels, biases, strict=True)
        )
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=is_causal, implementation="cudnn")
        return self.out_proj(mixed.reshape(x.shape))
