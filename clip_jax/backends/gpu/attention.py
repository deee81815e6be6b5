"""Attention by cuDNN's fused kernel, for half precision on NVIDIA GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.backends.pooled_row import RowAttention
from clip_jax.nn.layers import RowIds, Visible, split_heads


class CudnnAttention(RowAttention):
    """`Attention` whose scores never reach the GPU's memory; pooled rows use XLA's attention."""

    def __call__(
        self,
        x: Float[Array, "b l w"],
        *,
        is_causal: bool,
        rows: RowIds | None = None,
        **mask: Visible | None,
    ) -> Float[Array, "b r w"]:
        if rows is not None or mask:
            return super().__call__(x, is_causal=is_causal, rows=rows, **mask)
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=is_causal, implementation="cudnn")
        return self.out_proj(mixed.reshape(x.shape))
