"""The text tower: a transformer, causal and pooled at the end-of-text token as published."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Float, Integer

from clip_jax.config import Activation, TextConfig
from clip_jax.nn.layers import LayerNorm, Tap, Transformer, ignore, text_block_init
from clip_jax.nn.linear import Linear, Rngs, parameter, project


def pooled_positions(tokens: Integer[Array | np.ndarray, "b l"], config: TextConfig) -> Any:
    """Returns the position at which each text is pooled, or the one for all: `RowIds`."""
    match config.pooling:
        case "argmax":  # OpenAI's end-of-text token has the largest id of the vocabulary
            return tokens.argmax(1)
        case "eos":
            return (tokens == config.eos_id).argmax(1)  # 0 where there is none
        case "first":
            return 0
        case "last":
            return tokens.shape[1] - 1


class TokenEmbedding(nnx.Module):
    """A table with one row per id."""

    def __init__(self, vocab_size: int, width: int, *, rngs: Rngs):
        self.embedding = parameter(rngs, normal(0.02), vocab_size, width)

    def __call__(self, tokens: Integer[Array, "b l"]) -> Float[Array, "b l w"]:
        return self.embedding[...][tokens]


class TextTower(nnx.Module):
    """Embeds token ids.

    In official checkpoints its arrays are at the root, beside `visual` and `logit_scale`; therefore
    `CLIP` is a text tower instead of having one.
    """

    def __init__(self, config: TextConfig, embed_dim: int, activation: Activation, *, rngs: Rngs):
        width = config.width
        self.text_config = config
        self.token_embedding = TokenEmbedding(config.vocab_size, width, rngs=rngs)
        self.positional_embedding = parameter(rngs, normal(0.01), config.context_length, width)
        self.transformer = Transformer(
            config, activation, init=text_block_init(width, config.num_layers), rngs=rngs
        )
        self.ln_final = LayerNorm(width, config.norm_epsilon, rngs=rngs)
        self.text_projection = _projection(config, embed_dim, rngs)

    def text_features(
        self, tokens: Integer[Array, "b l"], dtype: jnp.dtype, tap: Tap = ignore
    ) -> Float[Array, "b d"]:
        """Embeds `tokens`, computing in `dtype`; any length up to the context, if it can be cut."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens).astype(dtype)  # b l w
        x = x + self.positional_embedding[...][:length].astype(dtype)
        # Without a padding mask: id 0 is an ordinary token ("!"). Under the causal mask, the end
        # token doesn't see what follows it.
        rows = pooled_positions(tokens, self.text_config)
        x = self.transformer(x, rows, is_causal=self.text_config.is_causal, tap=tap)  # b w
        x = self.ln_final(x)
        projection = self.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, Linear) else project(x, projection[...])


def _projection(config: TextConfig, embed_dim: int, rngs: Rngs) -> Linear | nnx.Variable | None:
    """Creates the projection to the joint space; a bare matrix, as published, if without bias."""
    width = config.width
    init = normal(width**-0.5)
    if config.has_projection_bias:
        return Linear(width, embed_dim, kernel_init=init, bias_init=zeros, rngs=rngs)
    return parameter(rngs, init, width, embed_dim) if config.has_projection else None
