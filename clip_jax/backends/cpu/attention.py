"""Attention in the form that is fastest with XLA's CPU backend (jaxlib 0.10, encode_profile.md)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.backends.cpu.linear import TransposedLinear, transposed_kernel
from clip_jax.backends.cpu.slices import in_slices
from clip_jax.backends.pooled_row import rows_of
from clip_jax.backends.single_query import SingleQueryAttention, attend_from
from clip_jax.backends.swap import adopt
from clip_jax.nn.layers import (
    Attention,
    Mask,
    QueryAttention,
    RowIds,
    Visible,
    causal_mask,
    split_heads,
)
from clip_jax.nn.resnet import AttentionPool

# Queries and heads at a time. For up to 256 queries, XLA's library has one kernel for both products
# and the exponential, which goes head by head, so that the scores stay in the cache; 257 took four
# times as long. Up to 512 queries are computed in two blocks; of more, so few heads at a time that
# their scores fit.
QUERIES_AT_ONCE, HEADS_AT_ONCE = 256, 2
# From this many sequences on, attention of a single query is faster without keys and values.
MANY_SEQUENCES = 4


def attention_in_blocks(
    q: Float[Array, "b q h c"],
    k: Float[Array, "b k h c"],
    v: Float[Array, "b k h c"],
    mask: Mask | None = None,
    *,
    heads_at_once: int | None = None,
    query_blocks: int = 1,
) -> Float[Array, "b q h c"]:
    """Computes the same as `nn.layers.dot_product_attention`.

    Without a mask, `heads_at_once` of all heads of all sequences are computed at a time, or the
    queries in `query_blocks` blocks. Neither changes the result, only the use of caches.
    """
    # With heads outermost and keys transposed, both products are plain ones of matrices laid out as
    # they are multiplied. The softmax divides last, on the smaller array. Together this is twice as
    # fast as plain einsum and softmax.
    q = (q * q.shape[-1] ** -0.5).transpose(0, 2, 1, 3)  # b h q c
    k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)  # b h c k, b h k c
    if mask is not None:
        mixed = _mix(q, k, v, mask)
    elif heads_at_once is not None:
        heads = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
        mixed = in_slices(lambda heads: _mix(*heads), heads, heads_at_once).reshape(q.shape)
    else:
        blocks = jnp.array_split(q, query_blocks, axis=2)
        mixed = jnp.concatenate([_mix(block, k, v) for block in blocks], axis=2)
    return mixed.transpose(0, 2, 1, 3)


def _mix(
    q: Float[Array, "*h q c"],
    k: Float[Array, "*h c k"],
    v: Float[Array, "*h k c"],
    mask: Mask | None = None,
) -> Float[Array, "*h q c"]:
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return mixed.astype(v.dtype)


class CachedAttention(SingleQueryAttention):
    """`Attention` in parts whose scores stay in the cache."""

    # XLA's CPU libraries support few of a single query's products in bfloat16.
    query_dtype = jnp.float32

    def __init__(self, attention: Attention, num_tokens: int | None = None):
        """Takes over a layer.

        Args:
            attention: the layer.
            num_tokens: the length of the sequences; None (as over a mesh) computes them whole.
        """
        super().__init__(attention)
        self.heads_at_once: int | None = None
        self.query_blocks = 1
        if num_tokens is not None and num_tokens > 2 * QUERIES_AT_ONCE:
            self.heads_at_once = HEADS_AT_ONCE
        elif num_tokens is not None and num_tokens > QUERIES_AT_ONCE:
            self.query_blocks = 2

    def __call__(
        self,
        x: Float[Array, "b l w"],
        *,
        is_causal: bool,
        rows: RowIds | None = None,
        **mask: Visible | None,
    ) -> Float[Array, "b r w"]:
        if mask:
            return super().__call__(x, is_causal=is_causal, rows=rows, **mask)
        if rows is not None and len(x) >= MANY_SEQUENCES:
            return self.from_rows(x, rows, is_causal=is_causal)
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        seen = rows_of(causal_mask(x.shape[1]), rows)[:, None] if is_causal else None
        heads, blocks = (self.heads_at_once, self.query_blocks) if rows is None else (None, 1)
        mixed = attention_in_blocks(
            rows_of(q, rows), k, v, seen, heads_at_once=heads, query_blocks=blocks
        )
        return self.out_proj(mixed.reshape(*mixed.shape[:2], x.shape[-1]))


class SingleQuery(QueryAttention):
    """`QueryAttention` that computes no keys and values."""

    def __init__(self, attention: QueryAttention):
        adopt(self, attention)

    def attend(self, query: Float[Array, "b 1 w"], x: Float[Array, "b l w"]) -> Float[Array, "b d"]:
        """As the layer it replaces."""
        q = split_heads(self.q_proj(query), self.num_heads)  # b 1 h c
        key, value = self.k_proj, self.v_proj
        # With kernels stored transposed, as `attend_from` needs, it pays for any number of images.
        if len(x) < MANY_SEQUENCES and not isinstance(key, TransposedLinear):
            k, v = split_heads(key(x), self.num_heads), split_heads(value(x), self.num_heads)
            return self.c_proj(attention_in_blocks(q, k, v).reshape(len(x), x.shape[-1]))
        kernels = transposed_kernel(key), transposed_kernel(value)
        return self.c_proj(attend_from(q[:, 0], x, *kernels, value.bias[...], dtype=jnp.float32))


class SingleQueryPool(SingleQuery, AttentionPool):
    """`AttentionPool` that computes no keys and values."""
