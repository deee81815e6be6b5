"""QuickGELU without a division, for half precision on GPUs.

With `norm.py` ViT-L/14 is 1.04 times as fast: H200, jax 0.11.2, accelerator-h200.md.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.backends.swap import adopt
from clip_jax.nn.layers import MLP


def quick_gelu(x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
    """Returns x sigmoid(1.702 x), computed in float32.

    A correctly rounded division takes longer on a GPU than reading and writing the array; 1 / y as
    rsqrt(y^2) is one instruction, and exact to 2 units in the last place of float32. Where y^2
    overflows, below x = -26, the result is 0 instead of some 1e-18.
    """
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.square(1 + jnp.exp(-1.702 * y)))).astype(x.dtype)


class QuickMLP(MLP):
    """`MLP` with that QuickGELU."""

    def __init__(self, mlp: MLP):
        adopt(self, mlp)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        return self.c_proj(quick_gelu(self.c_fc(x)))
