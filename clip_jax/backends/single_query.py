"""Attention with one query per sequence, without computing keys and values.

(x K) q = x (K q) and p (x V) = (p x) V: on the right sides, a matrix multiplies one row per
sequence instead of all. The keys' bias adds the same number to all scores of a query, which cancels
in the softmax; the weights sum to 1, so the values' bias is added once. The last block of a
transformer then costs a tenth. On a CPU it made no difference to a ViT-B/32 with one or two images;
with kernels that must be transposed for it, a ResNet-50 was slower with one image and faster with
eight (jaxlib 0.10, benchmarks/results/encode_profile.md). Not measured on GPUs.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clip_jax.backends.cpu.linear import multiply_transposed, transposed_kernel
from clip_jax.backends.pooled_row import RowAttention
from clip_jax.nn.layers import RowIds, Visible, causal_mask, split_heads, take_rows


def attend_from(
    q: Float[Array, "b h c"],
    x: Float[Array, "b l w"],
    key_kernel: Float[Array, "hc w"],
    value_kernel: Float[Array, "hc w"],
    value_bias: Float[Array, " hc"],
    mask: Bool[Array, "#b l"] | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "b hc"]:
    """Computes attention of one query per sequence to the rows of `x`.

    Args:
        q: the queries.
        x: the rows from which keys and values would be computed.
        key_kernel: the kernel of the keys, transposed.
        value_kernel: the kernel of the values, transposed.
        value_bias: the bias of the values.
        mask: the rows of a sequence that its query sees.
        dtype: the dtype of the products' inputs; by default that of `x`.
    """
    _, h, c = q.shape
    dtype = dtype or x.dtype
    q, rows, key_kernel, value_kernel = (
        array.astype(dtype) for array in (q, x, key_kernel, value_kernel)
    )
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    q = product("bhc,hcw->bhw", q * c**-0.5, key_kernel.reshape(h, c, -1)).astype(dtype)
    scores = product("bhw,blw->bhl", q, rows)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(dtype)
    mixed = product("bhl,blw->bhw", weights, rows).astype(dtype)
    out = product("bhw,hcw->bhc", mixed, value_kernel.reshape(h, c, -1)).astype(x.dtype)
    return out.reshape(x.shape[0], h * c) + value_bias.astype(x.dtype)


class SingleQueryAttention(RowAttention):
    """`RowAttention` that computes no keys and values if one row of each sequence is wanted."""

    # The dtype of products with one query; None for that of the activations.
    query_dtype: DTypeLike | None = None

    def __call__(
        self,
        x: Float[Array, "b l w"],
        *,
        is_causal: bool,
        rows: RowIds | None = None,
        **mask: Visible | None,
    ) -> Float[Array, "b r w"]:
        if rows is None or mask:
            return super().__call__(x, is_causal=is_causal, rows=rows, **mask)
        return self.from_rows(x, rows, is_causal=is_causal)

    def from_rows(
        self, x: Float[Array, "b l w"], rows: RowIds, *, is_causal: bool
    ) -> Float[Array, "b 1 w"]:
        """Computes attention from one row of each sequence."""
        q_kernel, k_kernel, v_kernel = jnp.split(transposed_kernel(self.in_proj), 3)
        q_bias, _, v_bias = jnp.split(self.in_proj.bias[...].astype(x.dtype), 3)
        q = multiply_transposed(take_rows(x, rows), q_kernel.astype(x.dtype))
        q = split_heads(q.astype(x.dtype) + q_bias, self.num_heads)[:, 0]  # b h c
        mask = take_rows(causal_mask(x.shape[1]), rows)[:, 0] if is_causal else None
        dtype = self.query_dtype
        mixed = attend_from(q, x, k_kernel, v_kernel, v_bias, mask, dtype=dtype)
        return self.out_proj(mixed)[:, None]
