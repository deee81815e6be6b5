"""SigLIP's attention pooling: the head of its vision tower."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import xavier_uniform
from jaxtyping import Array, Float

from clip_jax.config import Activation, ViTConfig
from clip_jax.nn.layers import MLP, LayerNorm, QueryAttention, vision_block_init
from clip_jax.nn.linear import Rngs, parameter


class ProbePool(nnx.Module):
    """Pools tokens by attention from a learned probe, then by an MLP (Zhai et al. 2022)."""

    def __init__(self, config: ViTConfig, activation: Activation, *, rngs: Rngs):
        width, hidden = config.width, config.mlp_width or 4 * config.width
        xavier, init = xavier_uniform(), vision_block_init(width)
        self.probe = parameter(rngs, xavier, 1, 1, width)
        self.attn = QueryAttention(width, width, config.num_heads, init=xavier, rngs=rngs)
        self.ln = LayerNorm(width, config.norm_epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden, activation, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b w"]:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
        x = self.attn.attend(probe, x)  # b w
        return x + self.mlp(self.ln(x))
