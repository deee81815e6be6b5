"""Swaps a model's layers for those that are fastest on a platform, for inference or training."""

import jax.numpy as jnp
from flax import nnx

from clip_jax.backends.cpu.attention import CachedAttention, SingleQuery, SingleQueryPool
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
from clip_jax.backends.gpu.attention import CudnnAttention, TrainedCudnnAttention
from clip_jax.backends.gpu.mlp import QuickMLP
from clip_jax.backends.gpu.norm import OnePassLayerNorm
from clip_jax.backends.pooled_row import PooledTransformer
from clip_jax.backends.swap import swap_layers
from clip_jax.config import ViTConfig
from clip_jax.nn import CLIP
from clip_jax.nn.layers import MLP, Attention, LayerNorm, QueryAttention, Transformer
from clip_jax.nn.linear import Linear
from clip_jax.nn.resnet import AttentionPool, Conv, ModifiedResNet
from clip_jax.nn.vit import PatchEmbedding, VisionTransformer


def optimize(model: CLIP, platform: str, *, in_slices: bool = True) -> None:
    """Swaps layers of `model`, in place, for those that are fastest on a platform for inference.

    The results are the same, within rounding. On every platform the last block of a transformer
    computes only the pooled rows. On CPUs the layout of arrays changes, so that the parameter tree
    is no longer the public one.

    Args:
        model: a model in evaluation mode that doesn't share its arrays, with parameters in the
            dtype in which it computes.
        platform: the platform it will run on, as `jax.Device.platform` names it.
        in_slices: whether to compute a batch in slices that stay in caches; not over a mesh, where
            rows are on several devices.
    """
    if platform != "cpu":
        swap_layers(model, pooled)
        return
    is_float32, is_bfloat16 = model.dtype == jnp.float32, model.dtype == jnp.bfloat16
    vision = model.config.vision
    num_tokens = vision.num_tokens if isinstance(vision, ViTConfig) and in_slices else None

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
            case QueryAttention():
                return SingleQuery(layer)
            case ModifiedResNet():
                return SlicedResNet(layer) if in_slices else None
            case VisionTransformer():
                return SlicedVisionTransformer(layer) if in_slices else None
        return None

    swap_layers(model, replacement)
    # No block sizes for the text tower: its sequences are short and masked.
    swap_attention(model.visual, lambda layer: CachedAttention(layer, num_tokens))
    swap_attention(model.transformer, CachedAttention)
    swap_layers(model, pooled)


def optimize_for_training(model: CLIP, platform: str, attention: AttentionName = "xla") -> None:
    """Swaps layers of `model`, in place, for training; the parameter tree doesn't change.

    On CPUs only reverse-mode differentiation works then, and the precision of matrix products in
    the backward pass must be set around the gradient instead of around the model.

    Args:
        model: a model in training mode.
        platform: the platform it will run on, as `jax.Device.platform` names it.
        attention: the image tower's; "cudnn" needs half precision on an NVIDIA GPU.
    """
    if platform != "cpu":
        swap_layers(model, pooled)
        if attention == "cudnn":
            swap_attention(model.visual, TrainedCudnnAttention)
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
            case QueryAttention():
                return SingleQuery(layer)
            case Attention():
                return CachedAttention(layer)
        return pooled(layer)

    swap_layers(model, replacement)


def use_attention(model: CLIP, image: AttentionName, text: AttentionName) -> None:
    """Sets the implementation of each tower's attention, in place; pooled rows always use XLA's.

    A tower with cuDNN's attention also gets the norms and activations that are faster beside it.
    """
    for tower, name in ((model.visual, image), (model.transformer, text)):
        if name == "cudnn":
            swap_attention(tower, CudnnAttention)
            swap_layers(tower, _beside_cudnn)


def _beside_cudnn(layer: nnx.Module) -> nnx.Module | None:
    match layer:
        case LayerNorm():
            return OnePassLayerNorm(layer)
        case MLP(activation="quick_gelu"):
            return QuickMLP(layer)
    return None


def pooled(layer: nnx.Module) -> nnx.Module | None:
    """Returns the layer that replaces a transformer on any platform; None for other layers."""
    return PooledTransformer(layer) if isinstance(layer, Transformer) else None


def swap_attention(module: nnx.Module, layer) -> None:
    """Replaces every attention layer `x` in `module` with `layer(x)`."""
    swap_layers(module, lambda old: layer(old) if isinstance(old, Attention) else None)
