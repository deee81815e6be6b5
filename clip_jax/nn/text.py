"""The text tower: a causal transformer, pooled at the end-of-text token."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Integer

from clip_jax.config import Activation, TextConfig
from clip_jax.nn.layers import LayerNorm, Tap, Transformer, ignore, text_block_init
from clip_jax.nn.linear import Rngs, parameter, project


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
        self.token_embedding = TokenEmbedding(config.vocab_size, width, rngs=rngs)
        self.positional_embedding = parameter(rngs, normal(0.01), config.context_length, width)
        self.transformer = Transformer(
            width,
            config.num_layers,
            config.num_heads,
            activation,
            init=text_block_init(width, config.num_layers),
            rngs=rngs,
        )
        self.ln_final = LayerNorm(width, rngs=rngs)
        self.text_projection = parameter(rngs, normal(width**-0.5), width, embed_dim)

    def text_features(
        self, tokens: Integer[Array, "b l"], dtype: jnp.dtype, tap: Tap = ignore
    ) -> Float[Array, "b d"]:
        """Embeds `tokens`, computing in `dtype`; any length up to the context length."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens).astype(dtype)  # b l w
        x = x + self.positional_embedding[...][:length].astype(dtype)
        # Causal, without a padding mask: id 0 is an ordinary token ("!"), and the end token doesn't
        # see what follows it.
        # The end-of-text token has the largest id of the vocabulary.
        x = self.transformer(x, tokens.argmax(1), is_causal=True, tap=tap)  # b w
        x = self.ln_final(x)
        return project(x, self.text_projection[...])
