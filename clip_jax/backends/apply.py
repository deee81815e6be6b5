"""Which layers are exchanged on which platform, for inference and for training."""

import jax.numpy as jnp
from flax import nnx

from clip_jax.backends.cpu.attention import CachedAttention, SingleQueryPool
from clip_jax.backends.cpu.convolution import (
    PointwiseConv,
    ProductsConv,
    SpaceToDepthConv,
    TransposedPointwiseConv,
    WinogradConv,
)
from clip_jax.backends.cpu.gradients import TrainedLinear
from clip_jax.backends.cpu.linear import (
    TransposedLinear,
    TransposedPatchEmbedding,
    WideLinear,
    WidePatchEmbedding,
)
from clip_jax.backends.cpu.slices import SlicedResNet, SlicedVisionTransformer
from clip_jax.backends.defaults import Attention as AttentionName
from clip_jax.backends.gpu.attention import CudnnAttention
from clip_jax.backends.swap import swap_layers
from clip_jax.config import ViTConfig
from clip_jax.nn import CLIP
from clip_jax.nn.layers import Attention
from clip_jax.nn.linear import Linear
from clip_jax.nn.resnet import AttentionPool, Conv, ModifiedResNet
from clip_jax.nn.vit import PatchEmbedding, VisionTransformer


def optimize(model: CLIP, platform: str, *, in_slices: bool = True) -> None:
    """Exchanges layers of `model` for those that a platform computes fastest, in place.

    What is computed is the same, within rounding. On CPUs arrays are laid out anew, so that the
    parameter tree is no longer the public one; elsewhere nothing is exchanged yet.

    Args:
        model: in evaluation, with arrays of its own, in the dtype in which it computes.
        platform: of the devices it will run on, as `jax.Device.platform` says it.
        in_slices: whether parts of a batch may be computed one after another, so that they stay in
            caches; not over a mesh, where the rows lie on several devices.
    """
    if platform != "cpu":
        return
    is_float32, is_bfloat16 = model.dtype == jnp.float32, model.dtype == jnp.bfloat16
    vision = model.config.vision
    num_tokens = vision.num_patches + 1 if isinstance(vision, ViTConfig) and in_slices else None

    def linear(layer: Linear | PatchEmbedding) -> nnx.Module | None:
        embeds = isinstance(layer, PatchEmbedding)
        if is_float32:
            return TransposedPatchEmbedding(layer) if embeds else TransposedLinear(layer)
        if is_bfloat16:
            return WidePatchEmbedding(layer) if embeds else WideLinear(layer)
        return None

    def convolution(layer: Conv) -> nnx.Module | None:
        if layer.size == 1:
            return TransposedPointwiseConv(layer) if is_float32 else PointwiseConv(layer)
        if layer.stride == 2:
            return SpaceToDepthConv(layer)
        if is_bfloat16:
            return ProductsConv(layer)
        return WinogradConv(layer) if is_float32 and in_slices else None

    def replacement(layer: nnx.Module) -> nnx.Module | None:
        match layer:
            case Linear() | PatchEmbedding():
                return linear(layer)
            case Conv():
                return convolution(layer)
            case AttentionPool():
                return SingleQueryPool(layer)
            case ModifiedResNet():
                return SlicedResNet(layer) if in_slices else None
            case VisionTransformer():
                return SlicedVisionTransformer(layer) if in_slices else None
        return None

    swap_layers(model, replacement)
    # The text tower's sequences are short, and have a mask.
    swap_attention(model.visual, lambda layer: CachedAttention(layer, num_tokens))
    swap_attention(model.transformer, CachedAttention)


def optimize_for_training(model: CLIP, platform: str) -> None:
    """Likewise, for a model whose gradients are taken; the parameter tree stays as it is.

    On CPUs only reverse-mode differentiation works then, and the precision of products in the
    gradient has to be set around the gradient instead of around the model.
    """
    if platform != "cpu":
        return

    def replacement(layer: nnx.Module) -> nnx.Module | None:
        match layer:
            case Linear():
                return TrainedLinear(layer)
            case PatchEmbedding():
                return WidePatchEmbedding(layer)
            case Conv(size=1):
                return PointwiseConv(layer)
            case AttentionPool():
                return SingleQueryPool(layer)
            case Attention():
                return CachedAttention(layer)
        return None

    swap_layers(model, replacement)


def use_attention(model: CLIP, image: AttentionName, text: AttentionName) -> None:
    """Has the attention of each tower computed that way, in place; the pooled row's stays XLA's."""
    if image == "cudnn":
        swap_attention(model.visual, CudnnAttention)
    if text == "cudnn":
        swap_attention(model.transformer, CudnnAttention)


def swap_attention(module: nnx.Module, layer) -> None:
    """Exchanges every attention layer in `module` for `layer` of it."""
    swap_layers(module, lambda old: layer(old) if isinstance(old, Attention) else None)
