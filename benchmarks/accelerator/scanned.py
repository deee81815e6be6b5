"""A transformer whose blocks are one program, run in a loop: it compiles in a fraction of the time.

What it costs when it runs, or gains, is what the benchmark wants to know.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from clip_jax.nn.layers import Tap, ignore


class ScannedTransformer(nnx.Module):
    """`clip_jax.nn.layers.Transformer` with the arrays of all blocks but the last in one stack."""

    def __init__(self, transformer: Any):
        """Copies the arrays, stacked."""
        *blocks, last = transformer.resblocks
        self.stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *blocks)
        self.last = last

    def __call__(self, x: Any, rows: Any, *, is_causal: bool = False, tap: Tap = ignore) -> Any:
        """As `Transformer`; no tap sees anything, for there are no blocks to see."""

        def step(x: Any, block: Any) -> tuple[Any, None]:
            return block(x, is_causal=is_causal), None

        x, _ = jax.lax.scan(step, x, self.stacked)
        return self.last(x, is_causal=is_causal, rows=rows)[:, 0]


def scan_blocks(tower: Any) -> None:
    """Replaces the transformer of a tower.

    Raises:
        ValueError: it has none, or no blocks besides the last.
    """
    if not hasattr(tower, "transformer") or len(tower.transformer.resblocks) < 2:
        raise ValueError("only a transformer of two blocks or more can be scanned")
    tower.transformer = ScannedTransformer(tower.transformer)
