"""Each tower by itself: the text encoder of diffusion models, the image encoder of others."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from clip_jax.config import Activation, TextConfig, ViTConfig
from clip_jax.inputs import as_images, as_mask, as_tokens
from clip_jax.nn.clip import (
    check_dtype,
    image_hidden_state,
    image_outputs,
    text_hidden_state,
    text_outputs,
)
from clip_jax.nn.linear import Rngs
from clip_jax.nn.outputs import ImageOutput, TextOutput
from clip_jax.nn.pixels import normalize_pixels
from clip_jax.nn.text import TextTower
from clip_jax.nn.vit import VisionTransformer
from clip_jax.pixel_config import PixelConfig


class TextModel(TextTower):
    """A text tower by itself; a pytree, whose parameter tree is that of `CLIP` without the rest.

    Attributes:
        config: the architecture.
        embed_dim: the dimension of the joint space; None if the tower has no way to it.
        dtype: dtype in which it computes, as in `CLIP`.
        precision: precision of matrix products, as in `CLIP`.
    """

    def __init__(
        self,
        config: TextConfig,
        embed_dim: int | None,
        *,
        activation: Activation = "quick_gelu",
        dtype: DTypeLike = jnp.float32,
        precision: str = "highest",
        rngs: Rngs = None,
    ):
        super().__init__(config, embed_dim, activation, rngs=rngs)
        self.config, self.embed_dim = config, embed_dim
        self.dtype, self.precision = check_dtype(dtype), precision

    def __call__(
        self,
        tokens: ArrayLike,
        hidden_states: bool = False,
        attentions: bool = False,
        attention_mask: ArrayLike | None = None,
    ) -> TextOutput:
        """Computes the tower on token ids, (b, l) as for `CLIP.encode_text`.

        Args:
            tokens: the ids.
            hidden_states: whether to return the result of every block.
            attentions: whether to return the weights of every block's attention.
            attention_mask: (b, l), 0 where a token is padding that no other may see; without it all
                are seen, as in training.

        Raises:
            ValueError: the shape or dtype is wrong, or (checked on NumPy arrays) an id is invalid.
        """
        tokens = as_tokens(tokens, self.config)
        mask = as_mask(attention_mask, tokens.shape)
        return text_outputs(self, tokens, hidden_states, attentions, mask)

    def hidden_state(
        self, tokens: ArrayLike, number: int, attention_mask: ArrayLike | None = None
    ) -> Float[Array, "b l w"]:
        """Returns one of the hidden states by its number; later blocks are not computed.

        Args:
            tokens: (b, l) ids.
            number: 0 for the embeddings, i for the result of block i, negative from the end: -2 is
                the result of the block before the last.
            attention_mask: as for the call.

        Raises:
            ValueError: there is no such number, or the ids are wrong.
        """
        count = _block_count(number, self.config.num_layers)
        tokens = as_tokens(tokens, self.config)
        return text_hidden_state(self, tokens, count, as_mask(attention_mask, tokens.shape))

    def encode_text(self, tokens: ArrayLike) -> Float[Array, "b d"]:
        """Embeds token ids in the joint space, as `CLIP.encode_text`.

        Raises:
            ValueError: the tower has no projection, or the ids are wrong.
        """
        if self.embed_dim is None:
            raise ValueError(
                "this text tower has no projection to the joint space, so there are no text_embeds:"
                " load the folder of a CLIPTextModelWithProjection or of the whole model."
            )
        embeds = self(tokens).text_embeds
        assert embeds is not None
        return embeds


class VisionModel(nnx.Module):
    """A Vision Transformer by itself; a pytree, whose parameter tree is `CLIP`'s at `visual`.

    Attributes:
        config: the architecture.
        embed_dim: the dimension of the joint space; None if the tower has no projection.
        pixels: the statistics by which uint8 images are normalised.
        dtype: dtype in which it computes, as in `CLIP`.
        precision: precision of matrix products, as in `CLIP`.
    """

    def __init__(
        self,
        config: ViTConfig,
        embed_dim: int | None,
        *,
        activation: Activation = "quick_gelu",
        pixels: PixelConfig | None = None,
        dtype: DTypeLike = jnp.float32,
        precision: str = "highest",
        rngs: Rngs = None,
    ):
        own = config.activation or activation
        self.visual = VisionTransformer(config, embed_dim, own, rngs=rngs)
        self.config, self.embed_dim, self.pixels = config, embed_dim, pixels or PixelConfig()
        self.dtype, self.precision = check_dtype(dtype), precision

    def __call__(
        self, images: ArrayLike, hidden_states: bool = False, attentions: bool = False
    ) -> ImageOutput:
        """Computes the tower on images, (b, n, n, 3) as for `CLIP.encode_image`.

        Args:
            images: uint8 pixels, or normalised floats.
            hidden_states: whether to return the result of every block.
            attentions: whether to return the weights of every block's attention.

        Raises:
            ValueError: the shape or the dtype is wrong.
        """
        images = as_images(images, self.config.image_size)
        return image_outputs(self, images, hidden_states, attentions)

    def hidden_state(self, images: ArrayLike, number: int) -> Float[Array, "b l w"]:
        """Returns one of the hidden states by its number, as `TextModel.hidden_state`."""
        count = _block_count(number, self.config.num_layers)
        return image_hidden_state(self, as_images(images, self.config.image_size), count)

    def encode_image(self, images: ArrayLike) -> Float[Array, "b d"]:
        """Embeds images in the joint space, as `CLIP.encode_image`.

        Raises:
            ValueError: the tower has no projection, or the images are wrong.
        """
        embeds = self(images).image_embeds
        if embeds is None:
            raise ValueError(
                "this vision tower has no projection to the joint space, so there are no "
                "image_embeds: load the folder of a CLIPVisionModelWithProjection or of the whole "
                "model."
            )
        return embeds

    def as_input(self, images: Array) -> Float[Array, "b n m 3"]:
        """Returns normalised images in the dtype of the computation."""
        if images.dtype == np.uint8:
            images = normalize_pixels(images, self.pixels.mean, self.pixels.std)
        return images.astype(self.dtype)


def _block_count(number: int, num_layers: int) -> int:
    """Returns how many blocks come before a hidden state."""
    if not -num_layers - 1 <= number <= num_layers:
        raise ValueError(
            f"hidden states have the numbers 0 to {num_layers}, or from the end -1 to "
            f"{-num_layers - 1}. Got {number}."
        )
    return number % (num_layers + 1)
