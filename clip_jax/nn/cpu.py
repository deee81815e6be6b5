"""A model rearranged as XLA's CPU backend runs it fastest; for inference."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from clip_jax.nn.clip import CLIP
from clip_jax.nn.layers import Attention
from clip_jax.nn.linear import Linear
from clip_jax.nn.resnet import Conv, ModifiedResNet, square_kernel
from clip_jax.nn.vit import PatchEmbedding, VisionTransformer
from clip_jax.nn.winograd import winograd_kernels

# Of a ResNet's batch, the images at a time whose activations stay in the caches: in the stem, in
# the first two stages, in the last two. Each array of the stem is over 100 MB at batch 32.
SLICE_SIZES = (1, 4, 8)
# Likewise of a Vision Transformer's, the tokens at a time: enough rows for products of matrices to
# be at their best, few enough for the scores of attention, which grow with the tokens squared.
SLICE_TOKENS = 2200
# Of attention, the queries and the heads at a time. XLA's library has one kernel for both products
# and the exponential, which goes head by head, so that the scores stay in the cache, for up to 256
# queries; for 257 it took four times as long. Up to twice as many go in two blocks. Of more, so few
# heads at a time that their scores fit.
QUERIES_AT_ONCE, HEADS_AT_ONCE = 256, 2


def rearrange_for_cpu(model: CLIP, *, in_slices: bool) -> None:
    """Changes the arrays of `model`, and how it computes with them, in place.

    In float32 kernels are stored transposed, as the matrix products of XLA's library take them with
    the least repacking: up to 1.7 times as fast for few rows, as fast for many; and 3x3
    convolutions go Winograd's way. In bfloat16 these are sums of products. The first convolution
    goes over squares of pixels. The parameter tree is no longer the public one.

    Args:
        model: in evaluation, with arrays of its own, in the dtype in which it computes.
        in_slices: whether the image tower may go through a batch slice by slice; not over a mesh,
            where the rows lie on several devices.
    """
    is_float32 = model.dtype == jnp.float32
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, Conv):
            _rearrange_convolution(module, model.dtype, in_slices=in_slices)
        elif isinstance(module, Linear | PatchEmbedding) and is_float32:
            _transpose(module)
            module.is_transposed = True
    if in_slices and isinstance(model.visual, ModifiedResNet):
        model.visual.slice_sizes = SLICE_SIZES
    elif in_slices and isinstance(model.visual, VisionTransformer):
        tokens = len(model.visual.positional_embedding[...])
        model.visual.slice_size = 2 ** max(0, (SLICE_TOKENS // tokens).bit_length() - 1)
        for _, module in nnx.iter_modules(model.visual):
            if isinstance(module, Attention):
                _cut_attention(module, tokens)


def _cut_attention(module: Attention, tokens: int) -> None:
    if tokens > 2 * QUERIES_AT_ONCE:
        module.heads_at_once = HEADS_AT_ONCE
    elif tokens > QUERIES_AT_ONCE:
        module.query_blocks = 2


def _rearrange_convolution(module: Conv, dtype: DTypeLike, *, in_slices: bool) -> None:
    if module.size == 1:
        if dtype == jnp.float32:
            _transpose(module)
            module.form = "transposed"
    elif module.stride == 2:
        module.kernel.set_value(jax.device_put(square_kernel(np.asarray(module.kernel[...]))))
        module.form = "squares"
    elif dtype == jnp.bfloat16:
        module.form = "products"
    elif dtype == jnp.float32 and in_slices:
        matrices = winograd_kernels(np.asarray(module.kernel[...]))
        module.winograd_kernels = nnx.List(nnx.Param(jax.device_put(m)) for m in matrices)
        module.form = "winograd"
        del module.kernel


def _transpose(module: Linear | PatchEmbedding | Conv) -> None:
    # By NumPy, because JAX would compile a program for each shape.
    kernel = np.moveaxis(np.asarray(module.kernel[...]), -1, 0)
    module.kernel.set_value(jax.device_put(np.ascontiguousarray(kernel)))
