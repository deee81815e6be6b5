"""The classes of Flax CLIP in transformers 4, with their arguments and results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from clip_jax.arrays import check_axes
from clip_jax.compat.base import FlaxPreTrainedModel, Params
from clip_jax.compat.configs import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    dropout_of,
    projection_of,
    text_architecture,
    vision_architecture,
    whole_architecture,
)
from clip_jax.compat.forward import Tower, image_outputs, text_outputs
from clip_jax.compat.outputs import (
    FlaxBaseModelOutputWithPooling,
    FlaxCLIPOutput,
    FlaxCLIPTextModelOutput,
    FlaxCLIPVisionModelOutput,
    ModelOutput,
)
from clip_jax.config import TextConfig, ViTConfig
from clip_jax.convert import from_huggingface
from clip_jax.convert.huggingface_towers import read_text_tower, read_vision_tower
from clip_jax.errors import CheckpointError
from clip_jax.inputs import as_tokens
from clip_jax.nn import ImageOutput, TextOutput, normalize


class FlaxCLIPTextModel(FlaxPreTrainedModel):
    """A text tower, as of Stable Diffusion 1 and 2 and Flux.

    Example:
        >>> config = CLIPTextConfig(hidden_size=64, num_hidden_layers=1, vocab_size=100)
        >>> model = FlaxCLIPTextModel(config)
        >>> model([[1, 2, 99]]).pooler_output.shape
        (1, 64)
    """

    config_class = CLIPTextConfig
    _has_projection = False

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Computes the tower.

        Args:
            input_ids: (b, l) integers, l at most the configuration's `max_position_embeddings`.
            attention_mask: (b, l), zero for positions that no other sees.
            position_ids: (b, l) integers; by default 0, 1, 2 and so on.
            params: the parameter tree; that of the model by default.
            dropout_rng: the key for dropout, which only a configuration with `attention_dropout`
                has, in training.
            train: whether it is training.
            output_attentions: whether to return attention's weights.
            output_hidden_states: whether to return the result of every block.
            return_dict: False for a tuple instead of an object.

        Raises:
            ValueError: a shape or dtype is wrong, or (checked on NumPy arrays) an id or a position
                is invalid; or arrays of `params` are missing or misshapen.
        """
        (tower,) = self._towers
        output = text_outputs(
            self.params if params is None else params,
            *_text_inputs(tower, input_ids, attention_mask, position_ids),
            _rng(tower, dropout_rng, train),
            tower=tower,
            **self._options(output_attentions, output_hidden_states),
        )
        return self._result(self._outputs(output), return_dict)

    def _outputs(self, output: TextOutput) -> ModelOutput:
        return _with_pooling(output)

    def _towers_of(self, document: Mapping[str, Any]) -> tuple[Tower, ...]:
        embed_dim = projection_of(document) if self._has_projection else None
        config = text_architecture(document)
        return (Tower(config, embed_dim, self.dtype, dropout_of(document)),)

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], Params]:
        _, embed_dim, tree = read_text_tower(folder)
        return _changes(cls, folder, embed_dim), tree


class FlaxCLIPTextModelWithProjection(FlaxCLIPTextModel):
    """A text tower and its projection, as the second one of Stable Diffusion XL.

    Called as `FlaxCLIPTextModel`; returns `text_embeds`, not normalised, and no `pooler_output`.
    """

    _has_projection = True

    def _outputs(self, output: TextOutput) -> ModelOutput:
        return FlaxCLIPTextModelOutput(
            output.text_embeds, output.last_hidden_state, output.hidden_states, output.attentions
        )


class FlaxCLIPVisionModel(FlaxPreTrainedModel):
    """A vision tower."""

    config_class = CLIPVisionConfig
    _has_projection = False

    def __call__(
        self,
        pixel_values: ArrayLike,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Computes the tower.

        Args:
            pixel_values: (b, 3, n, n) normalised floats, channels first as in PyTorch.
            params: the others are as of `FlaxCLIPTextModel`.
            dropout_rng: likewise.
            train: likewise.
            output_attentions: likewise.
            output_hidden_states: likewise.
            return_dict: likewise.

        Raises:
            ValueError: the shape or dtype is wrong, or arrays are missing or misshapen.
        """
        (tower,) = self._towers
        output = image_outputs(
            self.params if params is None else params,
            _pixels(tower, pixel_values),
            _rng(tower, dropout_rng, train),
            tower=tower,
            **self._options(output_attentions, output_hidden_states),
        )
        return self._result(self._outputs(output), return_dict)

    def _outputs(self, output: ImageOutput) -> ModelOutput:
        return _with_pooling(output)

    def _towers_of(self, document: Mapping[str, Any]) -> tuple[Tower, ...]:
        embed_dim = projection_of(document) if self._has_projection else None
        config = vision_architecture(document)
        return (Tower(config, embed_dim, self.dtype, dropout_of(document)),)

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], Params]:
        _, embed_dim, _, tree = read_vision_tower(folder)
        return _changes(cls, folder, embed_dim), tree


class FlaxCLIPVisionModelWithProjection(FlaxCLIPVisionModel):
    """A vision tower and its projection, as of IP-Adapter; transformers had it for PyTorch only.

    Called as `FlaxCLIPVisionModel`; returns `image_embeds`, not normalised.
    """

    _has_projection = True

    def _outputs(self, output: ImageOutput) -> ModelOutput:
        return FlaxCLIPVisionModelOutput(
            output.image_embeds, output.last_hidden_state, output.hidden_states, output.attentions
        )


class FlaxCLIPModel(FlaxPreTrainedModel):
    """Both towers."""

    config_class = CLIPConfig

    def __call__(
        self,
        input_ids: ArrayLike,
        pixel_values: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compares texts and images; the arguments are those of the towers' classes.

        Returns:
            `logits_per_image` (i, t), `logits_per_text`, normalised `text_embeds` and
            `image_embeds`, and the towers' own results.
        """
        tree = self.params if params is None else params
        options = self._options(output_attentions, output_hidden_states)
        text = self._text(
            input_ids, attention_mask, position_ids, tree, dropout_rng, train, **options
        )
        image = self._image(pixel_values, tree, dropout_rng, train, **options)
        assert text.text_embeds is not None and image.image_embeds is not None
        compared = _compared(_logit_scale(tree), text.text_embeds, image.image_embeds)
        output = FlaxCLIPOutput(
            *compared,
            text_model_output=_with_pooling(text),
            vision_model_output=_with_pooling(image),
        )
        return self._result(output, return_dict)

    def get_text_features(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns (b, d) embeddings of texts, not normalised."""
        tree = self.params if params is None else params
        output = self._text(input_ids, attention_mask, position_ids, tree, dropout_rng, train)
        assert output.text_embeds is not None
        return output.text_embeds

    def get_image_features(
        self,
        pixel_values: ArrayLike,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Returns (b, d) embeddings of (b, 3, n, n) pixels, not normalised."""
        tree = self.params if params is None else params
        output = self._image(pixel_values, tree, dropout_rng, train)
        assert output.image_embeds is not None
        return output.image_embeds

    def _text(
        self, ids: Any, mask: Any, positions: Any, tree: Any, rng: Any, train: bool, **options: bool
    ) -> TextOutput:
        tower = self._towers[0]
        inputs = _text_inputs(tower, ids, mask, positions)
        return text_outputs(tree, *inputs, _rng(tower, rng, train), tower=tower, **options)

    def _image(self, pixels: Any, tree: Any, rng: Any, train: bool, **options: bool) -> ImageOutput:
        tower = self._towers[1]
        inputs = _pixels(tower, pixels), _rng(tower, rng, train)
        return image_outputs(tree, *inputs, tower=tower, **options)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {"logit_scale": (), **super()._shapes()}

    def _towers_of(self, document: Mapping[str, Any]) -> tuple[Tower, ...]:
        config, (text, vision) = whole_architecture(document)
        dropouts = (dropout_of(document.get(f"{kind}_config")) for kind in ("text", "vision"))
        return tuple(
            Tower(tower, config.embed_dim, self.dtype, dropout)
            for tower, dropout in zip((text, vision), dropouts, strict=True)
        )

    @classmethod
    def _read(cls, folder: Path) -> tuple[dict[str, Any], Params]:
        return {}, from_huggingface(folder)[1]


def _changes(cls: type, folder: Path, embed_dim: int | None) -> dict[str, Any]:
    """Returns what the arrays say of a tower's configuration."""
    if not cls._has_projection:  # pyright: ignore[reportAttributeAccessIssue]
        return {}
    if embed_dim is None:
        embeds = "text_embeds" if issubclass(cls, FlaxCLIPTextModel) else "image_embeds"
        raise CheckpointError(
            f"{folder} has no projection to the joint space, so there are no {embeds}: take "
            f"{cls.__name__.removesuffix('WithProjection')}, or the folder of a whole model"
        )
    return {"projection_dim": embed_dim}


def _text_inputs(tower: Tower, ids: Any, mask: Any, positions: Any) -> tuple[Any, Any, Any]:
    assert isinstance(tower.config, TextConfig)
    ids = as_tokens(ids, tower.config)
    if positions is not None:
        positions = _beside(positions, ids, "position_ids")
        last = tower.config.context_length - 1
        if isinstance(positions, np.ndarray) and positions.size:
            low, high = positions.min(), positions.max()
            if low < 0 or high > last:
                raise ValueError(f"position_ids must lie in 0..{last}. Got {low}..{high}.")
    if mask is not None:
        mask = _beside(mask, ids, "attention_mask")
        mask = mask if mask.dtype == bool else mask > 0
    return ids, positions, mask


def _beside(given: Any, ids: Any, name: str) -> Any:
    """Returns an array that has a number for each id."""
    given = given if isinstance(given, Array) else np.asarray(given)
    if given.shape != ids.shape:
        raise ValueError(
            f"{name} must have the shape of input_ids, {ids.shape}. Got {given.shape}."
        )
    if name == "position_ids" and not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers. Got {given.dtype}.")
    if isinstance(given, Array):
        check_axes(given, name)
    return given


def _pixels(tower: Tower, pixels: Any) -> Any:
    assert isinstance(tower.config, ViTConfig)
    pixels, n = pixels if isinstance(pixels, Array) else np.asarray(pixels), tower.config.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (3, n, n):
        is_last = pixels.ndim == 4 and pixels.shape[1:] == (n, n, 3)
        hint = " Channels come first here: give pixels.transpose(0, 3, 1, 2)." if is_last else ""
        raise ValueError(
            f"pixel_values must have shape (batch, 3, {n}, {n}). Got {pixels.shape}.{hint}"
        )
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(f"pixel_values must be normalised floats. Got {pixels.dtype}.")
    if isinstance(pixels, Array):
        check_axes(pixels, "pixel_values")
    return pixels


def _rng(tower: Tower, rng: Array | None, train: bool) -> Array | None:
    if not train or not tower.dropout:
        return None
    if rng is None:
        raise ValueError(
            f"train=True drops a fraction of attention, {tower.dropout} in this configuration: "
            f"give a key as dropout_rng=."
        )
    return rng


def _logit_scale(tree: Params) -> Array:
    if "logit_scale" not in tree:
        raise ValueError("1 arrays of params do not fit:\n- logit_scale: missing")
    return tree["logit_scale"]


def _with_pooling(output: TextOutput | ImageOutput) -> FlaxBaseModelOutputWithPooling:
    return FlaxBaseModelOutputWithPooling(
        output.last_hidden_state, output.pooler_output, output.hidden_states, output.attentions
    )


@jax.jit
def _compared(scale: Array, text: Array, image: Array) -> tuple[Array, Array, Array, Array]:
    dtype = text.dtype
    text, image = (normalize(x).astype(dtype) for x in (text, image))
    logits = jnp.exp(scale).astype(dtype) * (text @ image.T)
    return logits.T, logits, text, image
