"""Attention by cuDNN's fused kernel, for half precision on NVIDIA GPUs.

1.35 times as fast at 257 tokens as XLA's: H200, jax 0.11.2, accelerator-h200.md. The table in
`clip_jax.backends.defaults` says from how many tokens on it pays.
"""

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
        return self.out_proj(self.mixed(x, is_causal).reshape(x.shape))

    def mixed(self, x: Float[Array, "b l w"], is_causal: bool) -> Float[Array, "b l h c"]:
        """Returns the values that each head has mixed for each token."""
        q, k, v = self.projections(x)
        return jax.nn.dot_product_attention(q, k, v, is_causal=is_causal, implementation="cudnn")

    def projections(self, x: Float[Array, "b l w"]) -> list[Float[Array, "b l h c"]]:
        """Returns queries, keys and values by head."""
        # Three products, since cuDNN's kernel needs q, k and v apart: slices of a joint product
        # would be copies, which take as long as a third of the product.
        kernels = jnp.split(self.in_proj.kernel[...].astype(x.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj.bias[...].astype(x.dtype), 3)
        return [
            split_heads(x @ kernel + bias, self.num_heads)
            for kernel, bias in zip(kernels, biases, strict=True)
        ]


class TrainedCudnnAttention(CudnnAttention):
    """`CudnnAttention` with a gradient, which JAX has only for even numbers of tokens.

    Odd ones, as class token and patches mostly are, get one more, which no query sees.
    """

    def mixed(self, x: Float[Array, "b l w"], is_causal: bool) -> Float[Array, "b l h c"]:
        """Returns the values that each head has mixed for each token."""
        batch, length = x.shape[:2]
        if length % 2 == 0:
            return super().mixed(x, is_causal)
        q, k, v = self.projections(jnp.pad(x, ((0, 0), (0, 1), (0, 0))))
        lengths = jnp.full(batch, length, jnp.int32)
        mixed = jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=is_causal,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return mixed[:, :length]
