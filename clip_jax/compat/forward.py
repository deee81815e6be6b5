"""Computes the towers from the parameter tree of Flax CLIP, which the caller holds.

A tower of `nn` is built inside each program and filled with the caller's arrays, so that a call is
a pure function of them. Only attention differs: it computes queries, keys and values one by one, as
their kernels are stored.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from clip_jax.backends.cpu.attention import attention_in_blocks
from clip_jax.compat.names import flax_path
from clip_jax.config import TextConfig, ViTConfig
from clip_jax.nn import ImageOutput, TextOutput, flatten, misfits
from clip_jax.nn.layers import (
    Attention,
    Transformer,
    Visible,
    attention_mask,
    attention_weights,
    split_heads,
)
from clip_jax.nn.linear import Linear
from clip_jax.nn.tree import listed, variables
from clip_jax.towers import TextModel, VisionModel


@dataclasses.dataclass(frozen=True)
class Tower:
    """What a program is compiled for.

    Attributes:
        config: the architecture of a tower.
        embed_dim: the dimension of its projection; None for none.
        dtype: dtype in which it computes.
        dropout: the fraction of attention's weights that training drops.
    """

    config: TextConfig | ViTConfig
    embed_dim: int | None
    dtype: np.dtype
    dropout: float = 0.0

    def module(self) -> TextModel | VisionModel:
        """Returns the tower of `nn` without arrays, its attention as Flax CLIP's."""
        if isinstance(self.config, TextConfig):
            model = _TextModel(self.config, self.embed_dim, dtype=self.dtype)
        else:
            model = VisionModel(self.config, self.embed_dim, dtype=self.dtype)
        for block in _transformer(model).resblocks:
            block.attn = SplitAttention(self.config.width, self.config.num_heads)
        return model

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array by its path in Flax CLIP's tree."""
        return _shapes(self)

    def filled(self, params: Mapping[str, Any], rng: Array | None) -> TextModel | VisionModel:
        """Returns the tower with these arrays; others in the tree are left alone.

        Args:
            params: Flax CLIP's tree.
            rng: the random numbers of dropout.

        Raises:
            ValueError: arrays are missing or misshapen; lists all of them.
        """
        arrays = checked(self.shapes(), params)
        model = self.module()
        for path, variable in variables(model).items():
            variable.set_value(arrays[flax_path(path)])
        for i, block in enumerate(_transformer(model).resblocks):
            attention = block.attn
            assert isinstance(attention, SplitAttention)
            if rng is not None and self.dropout:
                attention.dropout, attention.rng = self.dropout, jax.random.fold_in(rng, i)
        return model


@functools.cache
def _shapes(tower: Tower) -> dict[str, tuple[int, ...]]:
    return {flax_path(path): v.shape for path, v in variables(tower.module()).items()}


def checked(shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a tree by path, after checking that those needed are there and fit.

    Raises:
        ValueError: arrays are missing or misshapen; lists all of them.
        TypeError: it is no tree.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be nested dicts of arrays. Got {type(params).__name__}.")
    arrays = flatten(params)
    if problems := misfits(shapes, {path: arrays[path] for path in shapes if path in arrays}):
        raise ValueError(f"{len(problems)} arrays of params do not fit:\n{listed(problems)}")
    return arrays


def _transformer(model: TextModel | VisionModel) -> Transformer:
    return model.transformer if isinstance(model, TextModel) else model.visual.transformer


class _TextModel(TextModel):
    """A text tower whose tokens may have other positions than 0, 1, 2 and so on."""

    positions: Array | None = None

    def embeddings(self, tokens: Array, dtype: Any) -> Array:
        if self.positions is None:
            return super().embeddings(tokens, dtype)
        positions = self.positional_embedding[...][self.positions]
        return self.token_embedding(tokens).astype(dtype) + positions.astype(dtype)


class SplitAttention(Attention):
    """`Attention` with separate kernels of queries, keys and values, and dropout."""

    dropout: float = 0.0
    rng: Array | None = None

    def __init__(self, width: int, num_heads: int):
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(width, width, rngs=None) for _ in range(4)
        )

    def __call__(
        self, x: Float[Array, "b l w"], *, is_causal: bool, visible: Visible | None = None
    ) -> Float[Array, "b l w"]:
        """Mixes the values of all positions into each."""
        v = split_heads(self.v_proj(x), self.num_heads)
        if self.rng is None:
            # Fewer passes over the scores than `nn`'s: 0.97 of the time of a text tower on a CPU.
            mask = attention_mask(x.shape[1], is_causal, visible)
            mixed = attention_in_blocks(*self._scored(x), v, mask)
        else:
            weights = self.weights(x, is_causal=is_causal, visible=visible)
            # One pattern for all sequences and heads, as Flax has by default.
            keep = jax.random.bernoulli(self.rng, 1 - self.dropout, weights.shape[2:])
            weights = jnp.where(keep, weights / (1 - self.dropout), 0).astype(x.dtype)
            mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, v)
        return self.out_proj(mixed.reshape(x.shape))

    def weights(
        self, x: Float[Array, "b l w"], *, is_causal: bool, visible: Visible | None = None
    ) -> Float[Array, "b h l l"]:
        """Returns how much each position takes of each."""
        mask = attention_mask(x.shape[1], is_causal, visible)
        return attention_weights(*self._scored(x), mask).astype(x.dtype)

    def _scored(self, x: Float[Array, "b l w"]) -> tuple[Array, Array]:
        """Returns queries and keys, (b, l, h, c) each."""
        q, k = self.q_proj(x), self.k_proj(x)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads)


@functools.partial(jax.jit, static_argnames=("tower", "hidden_states", "attentions"))
def text_outputs(
    params: Mapping[str, Any],
    tokens: Integer[Array, "b l"],
    positions: Integer[Array, "b l"] | None = None,
    visible: Visible | None = None,
    rng: Array | None = None,
    *,
    tower: Tower,
    hidden_states: bool = False,
    attentions: bool = False,
) -> TextOutput:
    """Computes a text tower."""
    with jax.numpy_rank_promotion("allow"):
        model = tower.filled(params, rng)
        assert isinstance(model, _TextModel)
        if positions is not None:
            model.positions = positions
        mask = {} if visible is None else {"visible": visible}
        return model.outputs(
            tokens, tower.dtype, hidden_states=hidden_states, attentions=attentions, **mask
        )


@functools.partial(jax.jit, static_argnames=("tower", "hidden_states", "attentions"))
def image_outputs(
    params: Mapping[str, Any],
    pixel_values: Float[Array, "b 3 n n"],
    rng: Array | None = None,
    *,
    tower: Tower,
    hidden_states: bool = False,
    attentions: bool = False,
) -> ImageOutput:
    """Computes a vision tower."""
    with jax.numpy_rank_promotion("allow"):
        model = tower.filled(params, rng)
        assert isinstance(model, VisionModel)
        images = pixel_values.transpose(0, 2, 3, 1).astype(tower.dtype)
        return model.visual.outputs(images, hidden_states=hidden_states, attentions=attentions)
