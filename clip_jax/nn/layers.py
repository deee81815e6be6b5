"""The layers that both towers share: norms, attention, the residual block."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, constant, normal, ones, zeros
from jaxtyping import Array, Bool, Float, Int, Shaped

from clip_jax.config import Activation, TextConfig, ViTConfig, check_activation
from clip_jax.nn.linear import Linear, Rngs, parameter

# A callback with the name and the value of each hidden state; the names are those of the official
# checkpoint's modules.
Tap = Callable[[str, Array], None]

# The configuration of a tower's blocks.
Config = TextConfig | ViTConfig

# Whether a query (second-to-last axis) sees a key (last axis).
Mask = Bool[Array, "#b #h q k"]
# Which positions of each sequence may be seen: those that are no padding.
Visible = Bool[Array, "b l"]
# One row of each sequence: the same index for all, or one for each.
RowIds = int | Int[Array, " b"]
# A number of positions: an int, or a symbol while jax.export traces.
Size = Any

EPSILON = 1e-5  # of OpenAI's LayerNorms and every BatchNorm; Flax's own default is 1e-6


def ignore(name: str, hidden: Array) -> None:
    """A tap that does nothing."""


def identity(x: Array) -> Array:
    """A layer that a model doesn't have."""
    return x


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32 whatever the dtype of `x`."""

    def __init__(self, width: int, epsilon: float = EPSILON, *, rngs: Rngs):
        self.epsilon = epsilon
        self.scale = parameter(rngs, ones, width)
        self.bias = parameter(rngs, zeros, width)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        y = x.astype(jnp.float32)
        # The two-pass variance: E[x^2] - E[x]^2 cancels where the mean is large.
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class LayerScale(nnx.Module):
    """Multiplies each channel by a learned factor (Touvron et al. 2021)."""

    def __init__(self, width: int, initial: float, *, rngs: Rngs):
        self.gamma = parameter(rngs, constant(initial), width)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        return x * self.gamma[...].astype(x.dtype)


def activate(x: Float[Array, "*b w"], activation: Activation) -> Float[Array, "*b w"]:
    """Applies a GELU in float32; the variants differ by enough to ruin accuracy."""
    y = x.astype(jnp.float32)
    match activation:
        case "quick_gelu":
            y = y * jax.nn.sigmoid(1.702 * y)
        case "gelu":
            y = jax.nn.gelu(y, approximate=False)
        case "gelu_tanh":
            y = jax.nn.gelu(y, approximate=True)
        case _:
            check_activation(activation)  # raises
    return y.astype(x.dtype)


def dot_product_attention(
    q: Float[Array, "b q h c"],
    k: Float[Array, "b k h c"],
    v: Float[Array, "b k h c"],
    mask: Mask | None = None,
) -> Float[Array, "b q h c"]:
    """Computes attention over h heads of size c (Vaswani et al. 2017); softmax in float32."""
    weights = attention_weights(q, k, mask).astype(v.dtype)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, v, preferred_element_type=jnp.float32)
    return mixed.astype(v.dtype)


def attention_weights(
    q: Float[Array, "b q h c"], k: Float[Array, "b k h c"], mask: Mask | None
) -> Float[Array, "b h q k"]:
    """Returns how much each query takes of each value: sums of 1 over the last axis."""
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        # Finite, so that a query that sees nothing takes of all alike and gives no NaN.
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def causal_mask(length: Size) -> Bool[Array, "1 l l"]:
    """Returns the mask that is True where a position (row) sees another (column)."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def attention_mask(length: Size, is_causal: bool, visible: Visible | None) -> Mask | None:
    """Returns the mask of a sequence's attention to itself; None if all see all."""
    mask = causal_mask(length)[:, None] if is_causal else None
    if visible is None:
        return mask
    keys = jnp.broadcast_to(visible[:, None, None], (visible.shape[0], 1, length, length))
    return keys if mask is None else keys & mask


def take_rows(x: Shaped[Array, "#b l *w"], rows: RowIds) -> Shaped[Array, "#b 1 *w"]:
    """Returns one row of each sequence, with its axis kept."""
    if isinstance(rows, int):
        return x[:, rows : rows + 1]
    return jnp.take_along_axis(x, rows.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def split_heads(x: Float[Array, "b l w"], num_heads: int) -> Float[Array, "b l h c"]:
    """Splits the width into heads."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initialisers of the four matrices of a residual block."""

    in_proj: Initializer
    out_proj: Initializer | None
    c_fc: Initializer | None
    c_proj: Initializer | None


class Attention(nnx.Module):
    """Multi-head self-attention with one joint projection to q, k and v, in that order."""

    def __init__(self, width: int, num_heads: int, *, init: BlockInit, rngs: Rngs):
        self.num_heads = num_heads
        self.in_proj = Linear(
            width, 3 * width, kernel_init=init.in_proj, bias_init=zeros, rngs=rngs
        )
        self.out_proj = Linear(width, width, kernel_init=init.out_proj, bias_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, visible: Visible | None = None
    ) -> Float[Array, "b l w"]:
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        mask = attention_mask(x.shape[1], is_causal, visible)
        return self.out_proj(dot_product_attention(q, k, v, mask).reshape(x.shape))

    def weights(
        self, x: Float[Array, "b l w"], *, is_causal: bool, visible: Visible | None = None
    ) -> Float[Array, "b h l l"]:
        """Returns how much each position takes of each, whose values `__call__` mixes so."""
        q, k, _ = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        mask = attention_mask(x.shape[1], is_causal, visible)
        return attention_weights(q, k, mask).astype(x.dtype)


class QueryAttention(nnx.Module):
    """Multi-head attention whose queries come from elsewhere than keys and values."""

    def __init__(
        self, width: int, out_features: int, num_heads: int, *, init: Initializer, rngs: Rngs
    ):
        self.num_heads = num_heads
        self.q_proj = Linear(width, width, kernel_init=init, rngs=rngs)
        self.k_proj = Linear(width, width, kernel_init=init, rngs=rngs)
        self.v_proj = Linear(width, width, kernel_init=init, rngs=rngs)
        self.c_proj = Linear(width, out_features, kernel_init=init, rngs=rngs)

    def attend(self, query: Float[Array, "b 1 w"], x: Float[Array, "b l w"]) -> Float[Array, "b d"]:
        """Computes what each sequence's one query takes of its rows."""
        q, k, v = (
            split_heads(y, self.num_heads)
            for y in (self.q_proj(query), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(dot_product_attention(q, k, v).reshape(x.shape[0], x.shape[-1]))


class MLP(nnx.Module):
    """Two linear layers with a hidden layer of `hidden` channels."""

    def __init__(
        self, width: int, hidden: int, activation: Activation, *, init: BlockInit, rngs: Rngs
    ):
        self.activation: Activation = activation
        self.c_fc = Linear(width, hidden, kernel_init=init.c_fc, rngs=rngs)
        self.c_proj = Linear(hidden, width, kernel_init=init.c_proj, rngs=rngs)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: Config, activation: Activation, *, init: BlockInit, rngs: Rngs):
        width, hidden, scale = config.width, config.mlp_width, config.layer_scale
        self.ln_1 = LayerNorm(width, config.norm_epsilon, rngs=rngs)
        self.attn = Attention(width, config.num_heads, init=init, rngs=rngs)
        self.ls_1 = identity if scale is None else LayerScale(width, scale, rngs=rngs)
        self.ln_2 = LayerNorm(width, config.norm_epsilon, rngs=rngs)
        self.mlp = MLP(width, hidden or 4 * width, activation, init=init, rngs=rngs)
        self.ls_2 = identity if scale is None else LayerScale(width, scale, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, **mask: Visible
    ) -> Float[Array, "b l w"]:
        x = x + self.ls_1(self.attn(self.ln_1(x), is_causal=is_causal, **mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nnx.Module):
    """A stack of residual blocks; returns one row of each sequence, or all."""

    def __init__(self, config: Config, activation: Activation, *, init: BlockInit, rngs: Rngs):
        self.resblocks = nnx.List(
            ResidualBlock(config, activation, init=init, rngs=rngs)
            for _ in range(config.num_layers)
        )

    def __call__(
        self,
        x: Float[Array, "b l w"],
        rows: RowIds | None,
        *,
        is_causal: bool = False,
        tap: Tap = ignore,
        **mask: Visible,
    ) -> Float[Array, "b w"] | Float[Array, "b l w"]:
        for i, block in enumerate(self.resblocks):
            x = block(x, is_causal=is_causal, **mask)
            tap(f"transformer.resblocks.{i}", x)
        return x if rows is None else take_rows(x, rows)[:, 0]

    def first(
        self, x: Float[Array, "b l w"], count: int, *, is_causal: bool = False, **mask: Visible
    ) -> Float[Array, "b l w"]:
        """Applies the first `count` blocks."""
        for block in list(self.resblocks)[:count]:
            x = block(x, is_causal=is_causal, **mask)
        return x

    def attentions(
        self, states: Sequence[Float[Array, "b l w"]], *, is_causal: bool = False, **mask: Visible
    ) -> tuple[Float[Array, "b h l l"], ...]:
        """Returns the weights of every block's attention, given what enters each block."""
        return tuple(
            block.attn.weights(block.ln_1(x), is_causal=is_causal, **mask)
            for block, x in zip(self.resblocks, states, strict=False)
        )


def text_block_init(width: int, num_layers: int) -> BlockInit:
    """Returns the text tower's published initialisation: residual outputs shrink with depth."""
    output = width**-0.5 * (2 * num_layers) ** -0.5
    return BlockInit(
        in_proj=normal(width**-0.5),
        out_proj=normal(output),
        c_fc=normal((2 * width) ** -0.5),
        c_proj=normal(output),
    )


def vision_block_init(width: int) -> BlockInit:
    """Returns the vision tower's: PyTorch's defaults, with Xavier for the joint projection."""
    bound = math.sqrt(6 / (width + 3 * width))

    def xavier_uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return BlockInit(in_proj=xavier_uniform, out_proj=None, c_fc=None, c_proj=None)
