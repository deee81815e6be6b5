"""The vision tower as a Linen module, which diffusers' safety checker has inside its own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen
from jax import Array
from jax.typing import DTypeLike

from clip_jax.compat.models import FlaxCLIPVisionModel


class FlaxCLIPVisionModule(linen.Module):
    """`FlaxCLIPVisionModel` as a Linen module: `init`, `apply`, or a part of another module.

    Attributes:
        config: a `CLIPVisionConfig`.
        dtype: dtype of the computation.
    """

    config: Any
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        pixel_values: Array,
        deterministic: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """Computes the tower on (b, n, n, 3) normalised floats: channels last, unlike the model.

        Args:
            pixel_values: the images.
            deterministic: whether it is not training.
            output_attentions: as of `FlaxCLIPVisionModel`, like the rest.
            output_hidden_states: likewise.
            return_dict: likewise.
        """
        model = FlaxCLIPVisionModel(self.config, dtype=self.dtype, _do_init=False)
        tree = model.params_shape_tree
        params = {name: _Parameters(model, name, tree[name], name=name)() for name in tree}
        drops = not deterministic and self.has_rng("dropout")
        return model(
            jnp.moveaxis(pixel_values, -1, 1) if pixel_values.ndim == 4 else pixel_values,
            params=params,
            dropout_rng=self.make_rng("dropout") if drops else None,
            train=not deterministic,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )


class _Parameters(linen.Module):
    """The parameters below a path, by the names that the tree has."""

    model: FlaxCLIPVisionModel
    prefix: str
    tree: Mapping[str, Any]

    @linen.compact
    def __call__(self) -> dict[str, Any]:
        """Returns them, after making those that there are none of yet."""
        arrays = {}
        for name, inner in self.tree.items():
            path = f"{self.prefix}/{name}"
            if isinstance(inner, Mapping):
                arrays[name] = _Parameters(self.model, path, inner, name=name)()
            else:
                arrays[name] = self.param(name, self.model.initial, path, inner.shape)
        return arrays
