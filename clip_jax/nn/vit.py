"""The Vision Transformer (Dosovitskiy et al. 2020), as CLIP and SigLIP use it."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jaxtyping import Array, Float, Int

from clip_jax.config import Activation, VisionPooling, ViTConfig
from clip_jax.nn.layers import (
    LayerNorm,
    Tap,
    Transformer,
    identity,
    ignore,
    vision_block_init,
)
from clip_jax.nn.linear import Rngs, parameter, project, uniform_fan_in
from clip_jax.nn.outputs import ImageOutput
from clip_jax.nn.probe_pool import ProbePool


class PatchEmbedding(nnx.Module):
    """A convolution whose stride is its size: multiplies every patch by one matrix."""

    def __init__(self, patch_size: int, width: int, *, has_bias: bool = False, rngs: Rngs):
        fan_in = 3 * patch_size**2
        self.patch_size = patch_size
        self.kernel = parameter(rngs, uniform_fan_in(fan_in), patch_size, patch_size, 3, width)
        self.bias = parameter(rngs, zeros, width) if has_bias else None

    def __call__(
        self, images: Float[Array, "b n m 3"], kept: Int[Array, "b p"] | None = None
    ) -> Float[Array, "b p w"]:
        x = self.project(self.patches(images, kept))
        return x if self.bias is None else x + self.bias[...].astype(x.dtype)

    def patches(
        self, images: Float[Array, "b n m 3"], kept: Int[Array, "b p"] | None
    ) -> Float[Array, "b p ppc"]:
        """Returns the pixels of each patch as one row; what remains of an image is dropped."""
        p = self.patch_size
        b, n, m = images.shape[0], images.shape[1] // p, images.shape[2] // p
        images = images[:, : n * p, : m * p]  # whole patches; any remainder is dropped
        patches = images.reshape(b, n, p, m, p, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, n * m, p * p * 3)
        return patches if kept is None else jnp.take_along_axis(patches, kept[..., None], axis=1)

    def project(self, patches: Float[Array, "b p ppc"]) -> Float[Array, "b p w"]:
        """Computes the convolution as a matrix product."""
        kernel = self.kernel[...].astype(patches.dtype)
        return patches @ kernel.reshape(-1, kernel.shape[-1])


class VisionTransformer(nnx.Module):
    """Embeds images, pooled at the class token, as the mean of the patches, or by a probe."""

    def __init__(
        self, config: ViTConfig, embed_dim: int | None, activation: Activation, *, rngs: Rngs
    ):
        width, epsilon = config.width, config.norm_epsilon
        init = normal(width**-0.5)
        self.pooling: VisionPooling = config.pooling
        self.norm_after_pooling, self.has_embeds = config.norm_after_pooling, embed_dim is not None
        has_class_token = config.has_class_token
        self.conv1 = PatchEmbedding(
            config.patch_size, width, has_bias=not has_class_token, rngs=rngs
        )
        self.class_embedding = parameter(rngs, init, width) if has_class_token else None
        self.positional_embedding = parameter(rngs, init, config.num_tokens, width)
        self.ln_pre = LayerNorm(width, epsilon, rngs=rngs) if config.has_ln_pre else identity
        self.transformer = Transformer(config, activation, init=vision_block_init(width), rngs=rngs)
        self.ln_post = LayerNorm(width, epsilon, rngs=rngs)
        if config.pooling == "attention":
            self.attnpool = ProbePool(config, activation, rngs=rngs)
            embed_dim = None  # the pooled row isn't projected
        self.proj = None if embed_dim is None else parameter(rngs, init, width, embed_dim)

    def __call__(
        self,
        images: Float[Array, "b n m 3"],
        tap: Tap = ignore,
        kept: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b d"]:
        """Embeds images from all patches or, image by image, from those in `kept`."""
        x = self.tokens(images, tap, kept)  # b l w
        if self.pooling == "class":
            x = self.ln_post(self.transformer(x, rows=0, tap=tap))  # b w
            tap("ln_post", x)
        else:
            x = self.pool(self.transformer(x, rows=None, tap=tap), tap)
        return self.projected(x)

    def tokens(
        self,
        images: Float[Array, "b n m 3"],
        tap: Tap = ignore,
        kept: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b l w"]:
        """Returns what enters the first block: any class token, then the patches."""
        x = self.conv1(images, kept)  # b p w
        tap("conv1", x)
        positions = self.positional_embedding[...].astype(x.dtype)
        if self.class_embedding is None:
            x = x + (positions if kept is None else positions[kept])
        else:
            token = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), x[:, :1].shape)
            if kept is None:
                x = jnp.concatenate([token, x], axis=1) + positions  # b p+1 w
            else:
                x = jnp.concatenate([token + positions[0], x + positions[1:][kept]], axis=1)
        x = self.ln_pre(x)
        if self.ln_pre is not identity:
            tap("ln_pre", x)
        return x

    def pool(self, x: Float[Array, "b l w"], tap: Tap = ignore) -> Float[Array, "b w"]:
        """Pools and norms what comes out of the last block."""
        if self.pooling == "attention":
            x = self.ln_post(x)
            tap("ln_post", x)
            return self.attnpool(x)
        if self.pooling == "class":
            x = self.ln_post(x[:, 0])
        elif self.norm_after_pooling:
            x = self.ln_post(x[:, 1:].mean(1))
        else:
            x = self.ln_post(x[:, 1:]).mean(1)
        tap("ln_post", x)
        return x

    def projected(self, x: Float[Array, "b w"]) -> Float[Array, "b d"]:
        """Projects pooled rows to the joint space."""
        return x if self.proj is None else project(x, self.proj[...])

    def outputs(
        self, images: Float[Array, "b n m 3"], *, hidden_states: bool, attentions: bool
    ) -> ImageOutput:
        """Computes all that the tower has to give."""
        states = [self.tokens(images)]
        x = self.transformer(states[0], rows=None, tap=lambda _, y: states.append(y))
        pooled = self.pool(x)
        return ImageOutput(
            last_hidden_state=self.ln_post(x) if self.pooling == "attention" else x,
            pooler_output=pooled,
            image_embeds=self.projected(pooled) if self.has_embeds else None,
            hidden_states=tuple(states) if hidden_states else None,
            attentions=self.transformer.attentions(states) if attentions else None,
        )
