"""Towers that compute a batch in slices that fit in the caches of a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from clip_jax.backends.swap import adopt
from clip_jax.nn.layers import Tap, ignore
from clip_jax.nn.resnet import ModifiedResNet
from clip_jax.nn.vit import VisionTransformer

# Tokens of a Vision Transformer's slice: enough rows for fast matrix products, and few enough for
# the scores of attention, which grow with the square of the tokens.
TOKENS_AT_ONCE = 2200
# Images of a ResNet's slice in the stem, in the first two stages and in the last two. Each array of
# the stem is over 100 MB at batch 32.
STEM, EARLY, LATE = 1, 4, 8


def in_slices(function: Callable[[Any], Array], x: Any, size: int | None) -> Array:
    """Applies `function` to `size` rows at a time; to all at once if None or not a divisor.

    `x` is an array or a pytree of arrays with the same number of rows.
    """
    (rows,) = {len(array) for array in jax.tree.leaves(x)}
    if size is None or rows <= size or rows % size:
        return function(x)
    cut = jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[1:]), x)
    y = jax.lax.map(function, cut)
    return y.reshape(rows, *y.shape[2:])


class SlicedVisionTransformer(VisionTransformer):
    """`VisionTransformer` that computes a few images at a time."""

    def __init__(self, tower: VisionTransformer):
        adopt(self, tower)
        num_tokens = len(tower.positional_embedding[...])
        self.images_at_once = 2 ** max(0, (TOKENS_AT_ONCE // num_tokens).bit_length() - 1)

    def __call__(
        self,
        images: Float[Array, "b n m 3"],
        tap: Tap = ignore,
        kept: Int[Array, "b p"] | None = None,
    ) -> Float[Array, "b d"]:
        embed = super().__call__
        return in_slices(lambda x: embed(x[0], tap, x[1]), (images, kept), self.images_at_once)


class SlicedResNet(ModifiedResNet):
    """`ModifiedResNet` that computes in slices, which are larger in deeper stages."""

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
