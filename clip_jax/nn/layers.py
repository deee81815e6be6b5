"""The layers that both towers share: linear, norms, attention, the residual block.

Parameters are stored in float32 and cast to the dtype of the activations on use, so the entry
point alone decides in which dtype a model computes. Built without `rngs`, a layer holds shapes
instead of arrays: the abstract model that checkpoints are poured into.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from clip_jax.config import Activation

Initializer = jax.nn.initializers.Initializer
# Called with a name and a hidden state as a forward pass goes along; the names are those of the
# official checkpoint's modules.
Tap = Callable[[str, Array], None]

EPSILON = 1e-5  # of every LayerNorm and BatchNorm; Flax's own default is 1e-6

zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def ignore(name: str, hidden: Array) -> None:
    """The tap that keeps nothing."""


def uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default for linear and convolution arrays: uniform within 1/sqrt(fan in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float) -> Initializer:
    """A normal distribution around 0."""
    return jax.nn.initializers.normal(stddev)


def parameter(
    rngs: nnx.Rngs | None, init: Initializer, *shape: int, kind: type[nnx.Variable] = nnx.Param
) -> nnx.Variable:
    """A float32 array under `init`, or only its shape where there are no random numbers."""
    if rngs is None:
        return kind(jax.ShapeDtypeStruct(shape, jnp.float32))
    return kind(init(rngs.params(), shape, jnp.float32))


class Linear(nnx.Module):
    """`x @ kernel + bias`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs | None,
    ):
        default = uniform_fan_in(in_features)
        self.kernel = parameter(rngs, kernel_init or default, in_features, out_features)
        self.bias = parameter(rngs, bias_init or default, out_features)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in float32 whatever the dtype of `x`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs | None):
        self.scale = parameter(rngs, ones, width)
        self.bias = parameter(rngs, zeros, width)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        y = x.astype(jnp.float32)
        # The two-pass variance: E[x^2] - E[x]^2 cancels where the mean is large.
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def activate(x: Float[Array, "*b w"], activation: Activation) -> Float[Array, "*b w"]:
    """The GELU that the configuration names; they differ by enough to ruin accuracy."""
    match activation:
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(x, approximate=True)


def attend(
    q: Float[Array, "b q h c"],
    k: Float[Array, "b k h c"],
    v: Float[Array, "b k h c"],
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b q h c"]:
    """Softmax attention over h heads of size c, the softmax in float32."""
    q = q * q.shape[-1] ** -0.5
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores).astype(v.dtype), v)


def split_heads(x: Float[Array, "b l w"], num_heads: int) -> Float[Array, "b l h c"]:
    """Cuts the width into heads."""
    return x.reshape(*x.shape[:2], num_heads, -1)


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """How the four matrices of a residual block start."""

    in_proj: Initializer
    out_proj: Initializer | None
    c_fc: Initializer | None
    c_proj: Initializer | None


class Attention(nnx.Module):
    """Multi-head self-attention with one joint projection to q, k and v, in that order."""

    def __init__(self, width: int, num_heads: int, *, init: BlockInit, rngs: nnx.Rngs | None):
        self.num_heads = num_heads
        self.in_proj = Linear(
            width, 3 * width, kernel_init=init.in_proj, bias_init=zeros, rngs=rngs
        )
        self.out_proj = Linear(width, width, kernel_init=init.out_proj, bias_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l w"], mask: Bool[Array, "l l"] | None
    ) -> Float[Array, "b l w"]:
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        return self.out_proj(attend(q, k, v, mask).reshape(x.shape))


class MLP(nnx.Module):
    """Width to four times the width and back."""

    def __init__(
        self, width: int, activation: Activation, *, init: BlockInit, rngs: nnx.Rngs | None
    ):
        self.activation: Activation = activation
        self.c_fc = Linear(width, 4 * width, kernel_init=init.c_fc, rngs=rngs)
        self.c_proj = Linear(4 * width, width, kernel_init=init.c_proj, rngs=rngs)

    def __call__(self, x: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
        return self.c_proj(activate(self.c_fc(x), self.activation))


class ResidualBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        activation: Activation,
        *,
        init: BlockInit,
        rngs: nnx.Rngs | None,
    ):
        self.ln_1 = LayerNorm(width, rngs=rngs)
        self.attn = Attention(width, num_heads, init=init, rngs=rngs)
        self.ln_2 = LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, activation, init=init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l w"], mask: Bool[Array, "l l"] | None
    ) -> Float[Array, "b l w"]:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nnx.Module):
    """A stack of residual blocks."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        activation: Activation,
        *,
        init: BlockInit,
        rngs: nnx.Rngs | None,
    ):
        self.resblocks = nnx.List(
            ResidualBlock(width, num_heads, activation, init=init, rngs=rngs)
            for _ in range(num_layers)
        )

    def __call__(
        self,
        x: Float[Array, "b l w"],
        mask: Bool[Array, "l l"] | None = None,
        tap: Tap = ignore,
    ) -> Float[Array, "b l w"]:
        for i, block in enumerate(self.resblocks):
            x = block(x, mask)
            tap(f"transformer.resblocks.{i}", x)
        return x


def text_block_init(width: int, num_layers: int) -> BlockInit:
    """The text tower's published start: residual outputs shrink with the depth."""
    output = width**-0.5 * (2 * num_layers) ** -0.5
    return BlockInit(
        in_proj=normal(width**-0.5),
        out_proj=normal(output),
        c_fc=normal((2 * width) ** -0.5),
        c_proj=normal(output),
    )


def vision_block_init(width: int) -> BlockInit:
    """The vision tower's published start: PyTorch's defaults, Xavier for the joint projection."""
    bound = math.sqrt(6 / (width + 3 * width))

    def xavier_uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return BlockInit(in_proj=xavier_uniform, out_proj=None, c_fc=None, c_proj=None)
