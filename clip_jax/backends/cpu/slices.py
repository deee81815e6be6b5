"""Towers that go through a batch in slices that stay in the caches of a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from clip_jax.backends.swap import adopt
from clip_jax.nn.layers import Tap, ignore
from clip_jax.nn.resnet import ModifiedResNet
from clip_jax.nn.vit import VisionTransformer

# Of a Vision Transformer's batch, the tokens at a time: enough rows for products of matrices to be
# at their best, few enough for the scores of attention, which grow with the tokens squared.
TOKENS_AT_ONCE = 2200
# Of a ResNet's, the images at a time in the stem, in the first two stages, in the last two. Each
# array of the stem is over 100 MB at batch 32.
STEM, EARLY, LATE = 1, 4, 8


def in_slices(function: Callable[[Any], Array], x: Any, size: int | None) -> Array:
    """`function` over `size` rows at a time; over all at once if it is None or leaves a rest.

    `x` is an array, or several with as many rows, of which the function takes as many.
    """
    (rows,) = {len(array) for array in jax.tree.leaves(x)}
    if size is None or rows <= size or rows % size:
        return function(x)
    cut = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), x)
    y = jax.lax.map(function, cut)
    return y.reshape(rows, *y.shape[2:])


class SlicedVisionTransformer(VisionTransformer):
    """`VisionTransformer`, a few images at a time."""

    def __init__(self, tower: VisionTransformer):
        adopt(self, tower)
        num_tokens = len(tower.positional_embedding[...])
        self.images_at_once = 2 ** max(0, (TOKENS_AT_ONCE // num_tokens).bit_length() - 1)

    def __call__(
        self,
        images: Float[Array, "b n n 3"],
        tap: Tap = ignore,
        kept: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b d"]:
        embed = super().__call__
        return in_slices(lambda x: embed(x[0], tap, x[1]), (images, kept), self.images_at_once)


class SlicedResNet(ModifiedResNet):
    """`ModifiedResNet`, slice by slice; the deeper, the more images at a time."""

    def __init__(self, tower: ModifiedResNet):
        adopt(self, tower)

    def __call__(self, images: Float[Array, "b n n 3"], tap: Tap = ignore) -> Float[Array, "b d"]:
        def early(images: Array) -> Array:
            x = in_slices(self.stem, images, STEM)
            tap("avgpool", x)
            return self.stage(2, self.stage(1, x, tap), tap)

        x = in_slices(early, images, EARLY)
        x = in_slices(lambda x: self.stage(4, self.stage(3, x, tap), tap), x, LATE)
        return self.attnpool(x)
