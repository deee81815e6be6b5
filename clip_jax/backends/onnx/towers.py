"""What is around the blocks of the two towers, by ONNX's operators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from clip_jax.backends.onnx.layers import (
    add,
    attend,
    hidden_scores,
    matmul,
    node,
    reshape,
    transpose,
)
from clip_jax.backends.swap import adopt
from clip_jax.nn import CLIP
from clip_jax.nn.layers import RowIds, Size, Tap, ignore
from clip_jax.nn.linear import Linear
from clip_jax.nn.probe_pool import ProbePool
from clip_jax.nn.vit import PatchEmbedding, VisionTransformer


class OnnxPatchEmbedding(PatchEmbedding):
    """`PatchEmbedding` as the convolution that it is."""

    def __init__(self, embedding: PatchEmbedding):
        adopt(self, embedding)

    def __call__(
        self, images: Float[Array, "b n m 3"], kept: Int[Array, "b p"] | None = None
    ) -> Float[Array, "b p w"]:
        return self.of_channels(transpose(images, 0, 3, 1, 2))

    def of_channels(self, images: Float[Array, "b 3 n m"]) -> Float[Array, "b p w"]:
        """Embeds images whose channels come first."""
        kernel = np.asarray(self.kernel[...]).transpose(3, 2, 0, 1)  # w 3 p p
        sides = (self.patch_size, self.patch_size)
        inputs = [images, jnp.asarray(kernel)]
        bias = getattr(self, "bias", None)
        if bias is not None:
            inputs.append(bias[...])
        x = node("Conv", convolution(sides, 0), *inputs, strides=sides, kernel_shape=sides)
        return transpose(reshape(x, 0, kernel.shape[0], -1), 0, 2, 1)


def convolution(strides: tuple[int, int], padding: int):
    """Returns JAX's convolution of arrays whose channels come first, with a bias or without."""

    def compute(x: Array, kernel: Array, bias: Array | None = None) -> Array:
        x = jax.lax.conv_general_dilated(x, kernel, strides, [(padding, padding)] * 2)
        return x if bias is None else x + bias[:, None, None]

    return compute


class OnnxVisionTransformer(VisionTransformer):
    """`VisionTransformer` whose class token is no array of the batch's length.

    A row of zeros is put before the patches, and the token is added to it with its position.
    """

    def __init__(self, tower: VisionTransformer):
        adopt(self, tower)

    def tokens(
        self,
        images: Float[Array, "b n m 3"],
        tap: Tap = ignore,
        kept: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b l w"]:
        x = self.conv1(images)
        positions = np.array(self.positional_embedding[...])
        if self.class_embedding is not None:
            positions[0] += np.asarray(self.class_embedding[...])
            x = node("Pad", lambda a: jnp.pad(a, ((0, 0), (1, 0), (0, 0))), x, (0, 1, 0, 0, 0, 0))
        return self.ln_pre(add(x, jnp.asarray(positions)))


class OnnxProbePool(ProbePool):
    """`ProbePool` whose probe is no array of the batch's length."""

    def __init__(self, pool: ProbePool):
        adopt(self, pool)

    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b w"]:
        attn = self.attn
        q = attn.q_proj(self.probe[...])  # 1 1 w
        mixed = attend(q, attn.k_proj(x), attn.v_proj(x), attn.num_heads)
        x = reshape(attn.c_proj(mixed), -1, x.shape[-1])
        return add(x, self.mlp(self.ln(x)))


def text_features(model: CLIP, tokens: Integer[Array, "b l"]) -> Float[Array, "b d"]:
    """Embeds `tokens` of any length that the model takes, whose layers have been replaced."""
    config = model.text_config
    length = tokens.shape[1]
    positions = np.asarray(model.positional_embedding[...])
    table = hidden_scores(len(positions)) if config.is_causal else None
    positions = jnp.asarray(positions)
    if not isinstance(length, int):
        end = node("Shape", lambda a: jnp.full((1,), a.shape[1]), tokens, start=1, end=2)
        positions = _first(positions, end, length, axes=1)
        table = None if table is None else _first(table, end, length, axes=2)
    elif length < len(positions):
        positions = jnp.asarray(np.asarray(positions)[:length])
        table = None if table is None else hidden_scores(length)
    embedding = model.token_embedding.embedding[...]
    x = node("Gather", lambda a, i: jnp.take(a, i, axis=0), embedding, tokens, axis=0)
    x = add(x, positions)
    rows = _pooled_positions(model, tokens)
    transformer: Any = model.transformer
    x = transformer(x, rows, is_causal=config.is_causal, table=table)
    x = model.ln_final(x)
    projection = model.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, Linear) else matmul(x, projection[...])


def _first(x: Array, end: Array, length: Size, axes: int) -> Array:
    """Returns the first `length` places of the first axes."""

    def compute(a: Array, _: Array) -> Array:
        return a[:length] if axes == 1 else a[:length, :length]

    if axes == 2:
        end = node("Concat", lambda a, b: jnp.concatenate([a, b]), end, end, axis=0)
    return node("Slice", compute, x, (0,) * axes, end, tuple(range(axes)))


def _pooled_positions(model: CLIP, tokens: Integer[Array, "b l"]) -> RowIds:
    """Returns what `clip_jax.nn.text.pooled_positions` does."""
    config = model.text_config
    match config.pooling:
        case "argmax":
            ids = tokens
        case "eos":
            end = jnp.asarray(np.array(config.eos_id, np.int32))
            found = node("Equal", lambda a, b: a == b, tokens, end)
            ids = node("Cast", lambda a: a.astype(jnp.int32), found, to=6)  # int32
        case "first":
            return 0
        case "last":
            return tokens.shape[1] - 1
    return node("ArgMax", lambda a: a.argmax(1), ids, axis=1, keepdims=0)
