"""The functions that are exported: weights and a batch in, embeddings out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from clip_jax.backends.apply import pooled
from clip_jax.backends.half import cast
from clip_jax.backends.swap import swap_layers
from clip_jax.nn import CLIP, flatten, normalize, parameters, set_parameters, unflatten
from clip_jax.nn.clip import computing
from clip_jax.nn.pixels import normalize_pixels
from clip_jax.preprocess import Preprocess

ImageInput = Literal["pixels", "frames"]
Weights = Mapping[str, Array]
Function = Callable[[Weights, Array], Array]


@dataclasses.dataclass(frozen=True)
class Functions:
    """A model's towers as functions of their weights, by the paths of the public tree.

    Attributes:
        weights: the arrays, in the dtype in which the towers compute.
        image: weights and images to embeddings.
        text: weights and token ids to embeddings.
    """

    weights: dict[str, Array]
    image: Function
    text: Function


def functions_of(
    model: CLIP,
    *,
    dtype: DTypeLike | None,
    normalized: bool,
    frame_size: tuple[int, int] | None = None,
) -> Functions:
    """Returns a model's towers as functions.

    Args:
        model: the model, in evaluation mode.
        dtype: dtype in which the towers compute; by default the model's.
        normalized: whether embeddings are divided by their L2 norms.
        frame_size: height and width of uint8 frames that the image function takes; without it, it
            takes normalised images.
    """
    model = cast(model, model.dtype if dtype is None else dtype)
    config = model.config
    resize = None
    if frame_size is not None:
        resize = Preprocess(config.vision.image_size, config.pixels).on_device(*frame_size)

    def finished(embeddings: Array) -> Array:
        embeddings = embeddings.astype(jnp.float32)
        return normalize(embeddings) if normalized else embeddings

    def holding(weights: Weights) -> CLIP:
        # The platforms aren't known yet: no layer that is only for one of them.
        copy = cast(model, model.dtype)
        set_parameters(copy, unflatten(weights))
        swap_layers(copy, pooled)
        return copy

    def image(weights: Weights, images: Array) -> Array:
        with computing(model.precision):
            if resize is not None:
                pixels = resize(images)
                images = normalize_pixels(pixels, config.pixels.mean, config.pixels.std)
            return finished(holding(weights).image_features(images.astype(model.dtype)))

    def text(weights: Weights, tokens: Array) -> Array:
        with computing(model.precision):
            return finished(holding(weights).text_features(tokens, model.dtype))

    return Functions(flatten(parameters(model)), image, text)


def shapes_of(weights: Weights) -> dict[str, Any]:
    """Returns the shapes and dtypes of weights, for tracing."""
    return {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights.items()}
