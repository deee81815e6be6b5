"""Attention with one query a sequence, for which no keys and values need to be made.

(x K) q = x (K q) and p (x V) = (p x) V: on each right side a matrix meets one row of a sequence
instead of all. The keys' bias adds the same to all scores of a query, which the softmax doesn't
see; the weights sum to 1, so the values' bias is added once. So the last block of a transformer
costs a tenth. On a CPU it made no difference to a ViT-B/32 with one image or two; with kernels
that have to be transposed for it, it took a ResNet-50 longer with one image, and saved it time
with eight (jaxlib 0.10, benchmarks/results/encode_profile.md). On GPUs it is not measured.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from clip_jax.backends.cpu.linear import multiply_transposed, transposed_kernel
from clip_jax.backends.pooled_row import RowAttention
from clip_jax.nn.layers import RowIds, causal_mask, split_heads, take_rows


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
    """Attention of one query a sequence to `x`, whose keys and values these kernels would make.

    Args:
        q: the queries.
        x: what they attend to.
        key_kernel: stored transposed, as the others.
        value_kernel: of the values.
        value_bias: of the values.
        mask: which rows of a sequence its query sees.
        dtype: of what is multiplied; that of `x` unless it is given.
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
    return out.reshape(len(x), h * c) + value_bias.astype(x.dtype)


class SingleQueryAttention(RowAttention):
    """`RowAttention` that makes no keys and values where one row of each sequence is wanted."""

    # Of the products with one query; that of the activations where it is None.
    query_dtype: DTypeLike | None = None

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, rows: RowIds | None = None
    ) -> Float[Array, "b r w"]:
        if rows is None:
            return super().__call__(x, is_causal=is_causal)
        return self.from_rows(x, rows, is_causal=is_causal)

    def from_rows(
        self, x: Float[Array, "b l w"], rows: RowIds, *, is_causal: bool
    ) -> Float[Array, "b 1 w"]:
        """Attention from one row of each sequence."""
        q_kernel, k_kernel, v_kernel = jnp.split(transposed_kernel(self.in_proj), 3)
        q_bias, _, v_bias = jnp.split(self.in_proj.bias[...].astype(x.dtype), 3)
        q = multiply_transposed(take_rows(x, rows), q_kernel.astype(x.dtype))
        q = split_heads(q.astype(x.dtype) + q_bias, self.num_heads)[:, 0]  # b h c
        mask = take_rows(causal_mask(x.shape[1]), rows)[:, 0] if is_causal else None
        dtype = self.query_dtype
        mixed = attend_from(q, x, k_kernel, v_kernel, v_bias, mask, dtype=dtype)
        return self.out_proj(mixed)[:, None]
