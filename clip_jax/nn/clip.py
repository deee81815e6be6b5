"""CLIP: two towers that embed into one space (Radford et al. 2021, section 2)."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import constant
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.inputs import as_embeddings, as_images, as_mask, as_tokens
from clip_jax.nn.layers import Tap, ignore
from clip_jax.nn.linear import parameter
from clip_jax.nn.outputs import ImageOutput, TextOutput
from clip_jax.nn.pixels import normalize_pixels
from clip_jax.nn.resnet import ModifiedResNet
from clip_jax.nn.text import TextTower
from clip_jax.nn.vit import VisionTransformer


class CLIP(TextTower):
    """A CLIP model with either vision tower.

    It is a pytree, so it can be an argument of `jax.jit`, `jax.grad` and `jax.vmap`. Its methods
    are compiled: called on arrays they run as one program; called inside the caller's own `jit` or
    `grad` they become part of that.

    Attributes:
        config: the architecture.
        dtype: dtype in which the towers compute; parameters stay float32. LayerNorm,
            BatchNorm and softmax are float32 in any case.
        precision: the precision of matrix products and convolutions, a name that
            `jax.default_matmul_precision` takes. "highest" is true float32 everywhere; "default"
            admits TF32 on GPUs and one bfloat16 pass on TPUs.
    """

    config_class: type[CLIPConfig] = CLIPConfig

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        precision: str = "highest",
        rngs: nnx.Rngs | None = None,
    ):
        """Builds a model with parameters initialised as published.

        Args:
            config: the architecture.
            dtype: dtype in which the towers compute: float32, bfloat16 or float16.
            precision: for `jax.default_matmul_precision`.
            rngs: the random numbers for the parameters. Without it the model is abstract: it holds
                shapes, to be filled by `clip_jax.nn.set_parameters`.

        Raises:
            ValueError: the configuration is another family's, of which `clip_jax.nn.build` takes
                any; or there is no such dtype or precision.
        """
        if type(config) is not self.config_class:
            ours, theirs = self.config_class.__name__, type(config).__name__
            raise ValueError(
                f"{type(self).__name__} takes a {ours}. Got a {theirs}: clip_jax.nn.build(config) "
                f"makes the model of any configuration."
            )
        super().__init__(config.text, config.embed_dim, config.activation, rngs=rngs)
        self.config = config
        self.dtype = check_dtype(dtype)
        self.precision = check_precision(precision)
        self.use_running_average = True  # set by train() and eval(), as in every BatchNorm
        if isinstance(config.vision, ViTConfig):
            self.visual = VisionTransformer(
                config.vision, config.embed_dim, config.vision_activation, rngs=rngs
            )
        else:
            self.visual = ModifiedResNet(config.vision, config.embed_dim, rngs=rngs)
        self.logit_scale = parameter(rngs, constant(math.log(1 / 0.07)))
        if config.logit_bias is not None:
            self.logit_bias = parameter(rngs, constant(config.logit_bias))

    def encode_image(self, images: ArrayLike | Sequence[Any]) -> Float[Array, "b d"]:
        """Embeds images; not normalised.

        In training (`model.train()`) a ResNet normalises by the batch's statistics and updates
        its running ones.

        Args:
            images: (b, n, n, 3) with n the model's image size: uint8 pixels, or floats already
                normalised by `preprocess`. Any b, also 0.

        Returns:
            (b, d) embeddings in the model's dtype.

        Raises:
            ValueError: the shape or the dtype is wrong.
        """
        images = as_images(images, self.config.vision.image_size)
        features, statistics = _encode_image(self, images)
        if not self.use_running_average:
            nnx.update(self, statistics)
        return features

    def encode_text(
        self, tokens: ArrayLike | Sequence[Any] | None, *, embeddings: ArrayLike | None = None
    ) -> Float[Array, "b d"]:
        """Embeds token ids, or vectors in their place; not normalised.

        In OpenAI's models columns after the last end token of the batch have no effect: leaving
        them out gives the same embeddings in less time (`config.text.can_be_cut`).

        Args:
            tokens: (b, l) integers, l at most the context length, as from `clip_jax.tokenize`.
                In OpenAI's models a row's embedding is taken at the first occurrence of its largest
                id; in others as `config.text.pooling` says.
            embeddings: (b, l, w) vectors in place of the rows of `token_embedding` that the ids
                stand for, such as learned prompts; positions are added to them. `tokens` then only
                says where each text ends; it may be None for a model that pools at a fixed
                position.

        Returns:
            (b, d) embeddings in the model's dtype.

        Raises:
            ValueError: a shape or dtype is wrong; (checked on NumPy arrays) an id is invalid; or
                nothing says where a text ends.

        Example:
            >>> import clip_jax
            >>> model, _ = clip_jax.load("emoji")
            >>> tokens = clip_jax.tokenize("X X X X dog")  # X where vectors are learned
            >>> vectors = model.token_embedding(tokens).at[:, 1:5].set(0.0)
            >>> model.encode_text(tokens, embeddings=vectors).shape
            (1, 128)
        """
        if embeddings is not None:
            vectors, tokens = as_embeddings(embeddings, tokens, self.config.text)
            return _encode_text(self, tokens, vectors)
        if tokens is None:
            raise ValueError("encode_text needs tokens, or embeddings in their place. Got None.")
        tokens = as_tokens(tokens, self.config.text)
        return _encode_text(self, tokens)

    def __call__(
        self, images: ArrayLike | Sequence[Any], tokens: ArrayLike | Sequence[Any]
    ) -> tuple[Float[Array, "i t"], Float[Array, "t i"]]:
        """Returns scaled cosines plus any bias, `(logits_per_image, logits_per_text)`.

        Args:
            images: (i, n, n, 3), as for `encode_image`.
            tokens: (t, l), as for `encode_text`.

        Returns:
            (i, t) float32 logits and their transpose.
        """
        images = as_images(images, self.config.vision.image_size)
        tokens = as_tokens(tokens, self.config.text)
        logits, statistics = _logits(self, images, tokens)
        if not self.use_running_average:
            nnx.update(self, statistics)
        return logits, logits.T

    @staticmethod
    def probabilities(logits: Float[Array, "i t"]) -> Float[Array, "i t"]:
        """Returns what each image's probabilities of the texts are: the softmax of its logits."""
        return jax.nn.softmax(logits)

    def text_outputs(
        self,
        tokens: ArrayLike | Sequence[Any],
        hidden_states: bool = False,
        attentions: bool = False,
        attention_mask: ArrayLike | None = None,
    ) -> TextOutput:
        """Computes the text tower, and returns its hidden states too.

        Args:
            tokens: as for `encode_text`.
            hidden_states: whether to return the result of every block.
            attentions: whether to return the weights of every block's attention.
            attention_mask: (b, l), 0 where a token is padding that no other may see; without it all
                are seen, as in training.

        Raises:
            ValueError: as for `encode_text`.
        """
        tokens = as_tokens(tokens, self.config.text)
        mask = as_mask(attention_mask, tokens.shape)
        return text_outputs(self, tokens, hidden_states, attentions, mask)

    def image_outputs(
        self,
        images: ArrayLike | Sequence[Any],
        hidden_states: bool = False,
        attentions: bool = False,
    ) -> ImageOutput:
        """Computes the Vision Transformer, and returns its hidden states too.

        Args:
            images: as for `encode_image`.
            hidden_states: whether to return the result of every block.
            attentions: whether to return the weights of every block's attention.

        Raises:
            ValueError: as for `encode_image`, or the vision tower is a ResNet.
        """
        if not isinstance(self.config.vision, ViTConfig):
            raise ValueError("a ResNet has no such hidden states: take encode_image.")
        images = as_images(images, self.config.vision.image_size)
        return image_outputs(self, images, hidden_states, attentions)

    def __repr__(self) -> str:  # Flax's own has a thousand lines; nnx.display(model) shows it
        return f"{type(self).__name__}({self.config!r}, dtype={self.dtype})"

    def as_input(self, images: Array) -> Float[Array, "b n m 3"]:
        """Returns normalised images in the dtype of the computation."""
        if images.dtype == jnp.uint8:
            images = normalize_pixels(images, self.config.pixels.mean, self.config.pixels.std)
        return images.astype(self.dtype)

    def image_features(
        self, images: Array, tap: Tap = ignore, **options: Array
    ) -> Float[Array, "b d"]:
        """Embeds images, uncompiled; `tap` is called with every hidden state.

        A Vision Transformer has the option `kept`, (b, p) integers: the patches of each image to
        use.
        """
        return self.visual(self.as_input(images), tap, **options)


def check_model(model: object) -> None:
    """Raises TypeError for what is no model of both towers, such as a name in place of one."""
    if not isinstance(getattr(model, "config", None), CLIPConfig):
        raise TypeError(
            f"model must be one of both towers, as clip_jax.load returns it. "
            f"Got {type(model).__name__}."
        )


def check_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns a dtype in which towers compute; raises ValueError for others."""
    try:
        known = np.dtype(dtype)
    except TypeError:  # no dtype at all
        known = dtype
    if known not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16. Got {known}.")
    return np.dtype(known)


def check_precision(precision: str) -> str:
    """Returns a precision that JAX knows; raises ValueError for others."""
    try:
        with jax.default_matmul_precision(precision):
            return precision
    except ValueError:
        raise ValueError(
            f"precision must be one that jax.default_matmul_precision takes, such as 'highest' or "
            f"'default'. Got {precision!r}."
        ) from None


def normalize(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Divides each row by its L2 norm, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _new_statistics(model: CLIP) -> nnx.State:
    """Returns the BatchNorm statistics after a forward pass in training; none in evaluation."""
    if model.use_running_average:
        return nnx.State({})
    return nnx.state(model, nnx.BatchStat)


@contextlib.contextmanager
def computing(precision: str) -> Iterator[None]:
    """Sets the precision and the rank promotion that the towers need, whatever the caller's are."""
    with jax.default_matmul_precision(precision), jax.numpy_rank_promotion("allow"):
        yield


@jax.jit
def _encode_image(model: CLIP, images: Array) -> tuple[Array, nnx.State]:
    with computing(model.precision):
        return model.image_features(images), _new_statistics(model)


@jax.jit
def _encode_text(model: CLIP, tokens: Array, vectors: Array | None = None) -> Array:
    with computing(model.precision):
        return model.text_features(tokens, model.dtype, vectors=vectors)


@functools.partial(jax.jit, static_argnums=(2, 3))
def text_outputs(
    model: Any, tokens: Array, hidden_states: bool, attentions: bool, mask: Mapping[str, Array]
) -> TextOutput:
    """Computes all that a text tower has to give."""
    with computing(model.precision):
        return model.outputs(
            tokens, model.dtype, hidden_states=hidden_states, attentions=attentions, **mask
        )


@functools.partial(jax.jit, static_argnums=(2, 3))
def image_outputs(model: Any, images: Array, hidden_states: bool, attentions: bool) -> ImageOutput:
    """Computes all that a Vision Transformer has to give."""
    with computing(model.precision):
        return model.visual.outputs(
            model.as_input(images), hidden_states=hidden_states, attentions=attentions
        )


@functools.partial(jax.jit, static_argnums=2)
def text_hidden_state(model: Any, tokens: Array, count: int, mask: Mapping[str, Array]) -> Array:
    """Computes the first `count` blocks of a text tower."""
    with computing(model.precision):
        x = model.embeddings(tokens, model.dtype)
        return model.transformer.first(x, count, is_causal=model.text_config.is_causal, **mask)


@functools.partial(jax.jit, static_argnums=2)
def image_hidden_state(model: Any, images: Array, count: int) -> Array:
    """Computes the first `count` blocks of a Vision Transformer."""
    with computing(model.precision):
        return model.visual.transformer.first(model.visual.tokens(model.as_input(images)), count)


@jax.jit
def _logits(model: CLIP, images: Array, tokens: Array) -> tuple[Array, nnx.State]:
    with computing(model.precision):
        image = normalize(model.image_features(images))
        text = normalize(model.text_features(tokens, model.dtype))
        logits = jnp.exp(model.logit_scale[...]) * image @ text.T
        if model.config.logit_bias is not None:
            logits = logits + model.logit_bias[...]
    return logits, _new_statistics(model)
