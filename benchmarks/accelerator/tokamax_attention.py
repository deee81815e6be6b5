"""Attention by tokamax's kernels, in place of ours; by XLA where it has none for the device."""

from typing import Any

from benchmarks.accelerator.cases import NotHere
from clip_jax.backends.apply import swap_attention
from clip_jax.backends.pooled_row import RowAttention
from clip_jax.nn.layers import RowIds, split_heads


class TokamaxAttention(RowAttention):
    """`clip_jax.nn.layers.Attention` but for the product of queries, keys and values."""

    def __call__(self, x: Any, *, is_causal: bool, rows: RowIds | None = None) -> Any:
        """All rows by tokamax; the pooled one as ever."""
        import jax.numpy as jnp
        import tokamax

        if rows is not None:
            return super().__call__(x, is_causal=is_causal, rows=rows)
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        mixed = tokamax.dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(mixed.reshape(x.shape))


def use_tokamax(tower: Any) -> None:
    """Replaces the attention layers of a tower.

    Raises:
        NotHere: tokamax is not installed, or can't be imported.
    """
    try:
        import tokamax  # noqa: F401
    except Exception as error:  # it asks for a dozen packages, each of which may be missing
        raise NotHere(f"tokamax can't be imported: {error}") from None
    swap_attention(tower, TokamaxAttention)
