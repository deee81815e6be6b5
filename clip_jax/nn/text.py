"""The text tower: a transformer, causal and pooled at the end-of-text token as published."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Float, Integer

from clip_jax.config import Activation, TextConfig
from clip_jax.nn.layers import (
    LayerNorm,
    Tap,
    Transformer,
    Visible,
    ignore,
    take_rows,
    text_block_init,
)
from clip_jax.nn.linear import Linear, Rngs, parameter, project
from clip_jax.nn.outputs import TextOutput


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

    def __call__(self, tokens: Integer[Array | np.ndarray, "b l"]) -> Float[Array, "b l w"]:
        return self.embedding[...][tokens]


class TextTower(nnx.Module):
    """Embeds token ids.

    In official checkpoints its arrays are at the root, beside `visual` and `logit_scale`; therefore
    `CLIP` is a text tower instead of having one.
    """

    def __init__(
        self, config: TextConfig, embed_dim: int | None, activation: Activation, *, rngs: Rngs
    ):
        activation = config.activation or activation
        width = config.width
        self.text_config, self.has_embeds = config, embed_dim is not None
        self.token_embedding = TokenEmbedding(config.vocab_size, width, rngs=rngs)
        self.positional_embedding = parameter(rngs, normal(0.01), config.context_length, width)
        self.transformer = Transformer(
            config, activation, init=text_block_init(width, config.num_layers), rngs=rngs
        )
        self.ln_final = LayerNorm(width, config.norm_epsilon, rngs=rngs)
        self.text_projection = _projection(config, embed_dim, rngs)

    def text_features(
        self,
        tokens: Integer[Array, "b l"],
        dtype: jnp.dtype,
        tap: Tap = ignore,
        vectors: Float[Array, "b l w"] | None = None,
    ) -> Float[Array, "b d"]:
        """Embeds `tokens`, computing in `dtype`; any length up to the context, if it can be cut.

        With `vectors` in place of the ids' own, the ids only say where each text ends.
        """
        # b l w
        x = self.embeddings(tokens, dtype) if vectors is None else self.positioned(vectors, dtype)
        # Without a padding mask: id 0 is an ordinary token ("!"). Under the causal mask, the end
        # token doesn't see what follows it.
        rows = pooled_positions(tokens, self.text_config)
        x = self.transformer(x, rows, is_causal=self.text_config.is_causal, tap=tap)  # b w
        return self.projected(self.ln_final(x))

    def embeddings(self, tokens: Integer[Array, "b l"], dtype: jnp.dtype) -> Float[Array, "b l w"]:
        """Returns what enters the first block: the tokens' embeddings with their positions."""
        return self.positioned(self.token_embedding(tokens), dtype)

    def positioned(self, x: Float[Array, "b l w"], dtype: jnp.dtype) -> Float[Array, "b l w"]:
        """Adds the embeddings of the positions, in `dtype`."""
        return x.astype(dtype) + self.positional_embedding[...][: x.shape[1]].astype(dtype)

    def projected(self, x: Float[Array, "b w"]) -> Float[Array, "b d"]:
        """Projects pooled rows to the joint space."""
        projection = self.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, Linear) else project(x, projection[...])

    def outputs(
        self,
        tokens: Integer[Array, "b l"],
        dtype: jnp.dtype,
        *,
        hidden_states: bool,
        attentions: bool,
        **mask: Visible,
    ) -> TextOutput:
        """Computes all that the tower has to give; `visible` may say which tokens are seen."""
        is_causal = self.text_config.is_causal
        states = [self.embeddings(tokens, dtype)]
        x = self.transformer(
            states[0], None, is_causal=is_causal, tap=lambda _, y: states.append(y), **mask
        )
        x = self.ln_final(x)  # b l w
        pooled = take_rows(x, pooled_positions(tokens, self.text_config))[:, 0]
        embeds = self.projected(pooled)
        weights = None
        if attentions:
            weights = self.transformer.attentions(states, is_causal=is_causal, **mask)
        return TextOutput(
            last_hidden_state=x,
            # In transformers, a projection with bias is part of SigLIP's pooling.
            pooler_output=embeds if self.text_config.has_projection_bias else pooled,
            text_embeds=embeds if self.has_embeds else None,
            hidden_states=tuple(states) if hidden_states else None,
            attentions=weights,
        )


def _projection(
    config: TextConfig, embed_dim: int | None, rngs: Rngs
) -> Linear | nnx.Variable | None:
    """Creates the projection to the joint space; a bare matrix, as published, if without bias."""
    width = config.width
    init = normal(width**-0.5)
    if embed_dim is None:
        return None
    if config.has_projection_bias:
        return Linear(width, embed_dim, kernel_init=init, bias_init=zeros, rngs=rngs)
    return parameter(rngs, init, width, embed_dim) if config.has_projection else None
