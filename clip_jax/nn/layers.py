"""The layers that both towers share: norms, attention, the residual block."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from clip_jax.config import Activation
from clip_jax.nn.linear import Initializer, Linear, multiply, normal, ones, parameter, zeros

# Called with a name and a hidden state as a forward pass goes along; the names are those of the
# official checkpoint's modules.
Tap = Callable[[str, Array], None]

# Of attention: XLA's own operations, or cuDNN's fused kernel, which takes half precision only.
Implementation = Literal["xla", "cudnn"]
# Which key (last axis) a query (the axis before it) sees.
Mask = Bool[Array, "#b #h q k"]
# One row of each sequence: the same of all, or its index in each.
Rows = int | Int[Array, " b"]

# From how many sequences on `attend_from` is used. On a CPU it made no difference to a ViT-B/32
# with one image or two; with kernels that have to be transposed for it, it took a ResNet-50 longer
# with one image, and saved it time with eight.
MANY_SEQUENCES = 4

EPSILON = 1e-5  # of every LayerNorm and BatchNorm; Flax's own default is 1e-6


def ignore(name: str, hidden: Array) -> None:
    """The tap that keeps nothing."""


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
    """The GELU that the configuration names; they differ by enough to ruin accuracy.

    In float32 whatever the dtype of `x`: XLA would round after each operation in between, which
    takes CPUs twice the time.
    """
    y = x.astype(jnp.float32)
    match activation:
        case "quick_gelu":
            y = y * jax.nn.sigmoid(1.702 * y)
        case "gelu":
            y = jax.nn.gelu(y, approximate=False)
        case "gelu_tanh":
            y = jax.nn.gelu(y, approximate=True)
    return y.astype(x.dtype)


def attend(
    q: Float[Array, "b q h c"],
    k: Float[Array, "b k h c"],
    v: Float[Array, "b k h c"],
    mask: Mask | None = None,
    *,
    heads_at_once: int | None = None,
    query_blocks: int = 1,
) -> Float[Array, "b q h c"]:
    """Softmax attention over h heads of size c, the softmax in float32.

    Where there is no mask, `heads_at_once` of all heads of all sequences are computed at a time, or
    the queries in so many blocks. Neither changes what is computed, only what lies in caches.
    """
    # Heads outermost and keys upright, so that both products are plain ones of matrices that lie
    # in memory as they are multiplied; and the quotient of the softmax taken last, on the smaller
    # array: twice as fast on CPUs as einsum and softmax as they come.
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
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return mixed.astype(v.dtype)


def attend_from(
    q: Float[Array, "b h c"],
    x: Float[Array, "b l w"],
    key_kernel: Float[Array, "hc w"],
    value_kernel: Float[Array, "hc w"],
    value_bias: Float[Array, " hc"],
    mask: Bool[Array, "#b l"] | None = None,
) -> Float[Array, "b hc"]:
    """Attention with one query a sequence, for which no keys and values need to be made.

    (x K) q = x (K q) and p (x V) = (p x) V: on each right side a matrix meets one row of a
    sequence instead of all. The keys' bias adds the same to all scores of a query, which the
    softmax doesn't see; the weights sum to 1, so the values' bias is added once.
    """
    _, h, c = q.shape
    # In float32 on CPUs, whose libraries take few of these products in bfloat16.
    dtype = jnp.float32 if jax.default_backend() == "cpu" else x.dtype
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


def causal_mask(length: int) -> Bool[Array, "1 l l"]:
    """True where a position (row) sees another (column): itself and all before it."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def take_rows(x: Shaped[Array, "#b l *w"], rows: Rows | None) -> Shaped[Array, "#b r *w"]:
    """One row of each sequence, its axis kept; all rows where `rows` is None."""
    if rows is None:
        return x
    if isinstance(rows, int):
        return x[:, rows : rows + 1]
    return jnp.take_along_axis(x, rows.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def in_slices(function: Callable[[Any], Array], x: Any, size: int | None) -> Array:
    """`function` over `size` rows at a time; over all at once if it is None or leaves a rest.

    `x` is an array, or several with as many rows, of which the function takes as many.
    """
    (rows,) = {len(array) for array in jax.tree.leaves(x)}
    if size is None or rows <= size or rows % size:
        return function(x)
    cut = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), x)
    y = jax.lax.map(function, cut)
    return y.reshape(rows, *y.shape[2:])


def split_heads(x: Float[Array, "b l w"], num_heads: int) -> Float[Array, "b l h c"]:
    """Cuts the width into heads."""
    return x.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads)


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
        self.implementation: Implementation = "xla"  # set by `use_attention`
        self.heads_at_once: int | None = None  # these two are set by `rearrange_for_cpu`
        self.query_blocks = 1
        self.in_proj = Linear(
            width, 3 * width, kernel_init=init.in_proj, bias_init=zeros, rngs=rngs
        )
        self.out_proj = Linear(width, width, kernel_init=init.out_proj, bias_init=zeros, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, rows: Rows | None = None
    ) -> Float[Array, "b r w"]:
        mask = take_rows(causal_mask(x.shape[1]), rows) if is_causal else None
        if rows is not None and len(x) >= MANY_SEQUENCES:
            return self._pooled(x, mask, rows)
        q, k, v = (split_heads(y, self.num_heads) for y in jnp.split(self.in_proj(x), 3, axis=-1))
        if rows is None and self.implementation == "cudnn":
            mixed = jax.nn.dot_product_attention(
                q, k, v, is_causal=is_causal, implementation="cudnn"
            )
        elif rows is None:
            heads, blocks = self.heads_at_once, self.query_blocks
            seen = None if mask is None else mask[:, None]
            mixed = attend(q, k, v, seen, heads_at_once=heads, query_blocks=blocks)
        else:
            mixed = attend(take_rows(q, rows), k, v, None if mask is None else mask[:, None])
        return self.out_proj(mixed.reshape(*mixed.shape[:2], x.shape[-1]))

    def _pooled(
        self, x: Float[Array, "b l w"], mask: Bool[Array, "#b 1 l"] | None, rows: Rows
    ) -> Float[Array, "b 1 w"]:
        q_kernel, k_kernel, v_kernel = jnp.split(self.in_proj.upright, 3)
        q_bias, _, v_bias = jnp.split(self.in_proj.bias[...].astype(x.dtype), 3)
        q = multiply(take_rows(x, rows), q_kernel.astype(x.dtype), is_transposed=True)
        q = split_heads(q.astype(x.dtype) + q_bias, self.num_heads)[:, 0]  # b h c
        seen = None if mask is None else mask[:, 0]
        return self.out_proj(attend_from(q, x, k_kernel, v_kernel, v_bias, seen))[:, None]


def use_attention(model: nnx.Module, implementation: Implementation) -> None:
    """Has every attention layer of `model` computed that way, but for the pooled row's."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Attention):
            module.implementation = implementation


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
    """A pre-norm transformer block; with `rows`, only those rows of its result are computed."""

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
        self, x: Float[Array, "b l w"], *, is_causal: bool, rows: Rows | None = None
    ) -> Float[Array, "b r w"]:
        x = take_rows(x, rows) + self.attn(self.ln_1(x), is_causal=is_causal, rows=rows)
        return x + self.mlp(self.ln_2(x))


def run_block(
    block: nnx.Module, x: Float[Array, "b ..."], rematerializes: bool, **options: Any
) -> Float[Array, "b ..."]:
    """`block(x)`; its hidden states are either kept for the gradient or computed once more."""
    if not rematerializes:
        return block(x, **options)  # pyright: ignore[reportCallIssue]

    def forward(block: Any, x: Array) -> Any:
        y = block(x, **options)
        # What a block notes of the batch is noted in the copy that went in here.
        return y, nnx.state(block, nnx.BatchStat)

    y, statistics = jax.checkpoint(forward)(block, x)
    nnx.update(block, statistics)
    return y


class Transformer(nnx.Module):
    """A stack of residual blocks, pooled to one row of each sequence."""

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
        self.rematerializes = False  # set by `rematerialize`
        self.resblocks = nnx.List(
            ResidualBlock(width, num_heads, activation, init=init, rngs=rngs)
            for _ in range(num_layers)
        )

    def __call__(
        self,
        x: Float[Array, "b l w"],
        rows: Rows,
        *,
        is_causal: bool = False,
        tap: Tap = ignore,
    ) -> Float[Array, "b w"]:
        *blocks, last = self.resblocks
        for i, block in enumerate(blocks):
            x = run_block(block, x, self.rematerializes, is_causal=is_causal)
            tap(f"transformer.resblocks.{i}", x)
        if tap is ignore:
            # All rows are needed up to the last block's keys and values, one row from there on.
            return run_block(last, x, self.rematerializes, is_causal=is_causal, rows=rows)[:, 0]
        x = last(x, is_causal=is_causal)
        tap(f"transformer.resblocks.{len(blocks)}", x)
        return take_rows(x, rows)[:, 0]


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
