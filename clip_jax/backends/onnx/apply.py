"""Swaps a model's layers for those that become ONNX's operators."""

from flax import nnx

from clip_jax.backends.onnx.layers import (
    OnnxLayerNorm,
    OnnxLayerScale,
    OnnxLinear,
    OnnxMLP,
    OnnxTransformer,
)
from clip_jax.backends.onnx.resnet import OnnxAttentionPool, OnnxBottleneck, OnnxResNet
from clip_jax.backends.onnx.towers import OnnxPatchEmbedding, OnnxProbePool, OnnxVisionTransformer
from clip_jax.backends.swap import swap_layers
from clip_jax.nn import CLIP
from clip_jax.nn.layers import MLP, LayerNorm, LayerScale, Transformer
from clip_jax.nn.linear import Linear
from clip_jax.nn.probe_pool import ProbePool
from clip_jax.nn.resnet import AttentionPool, Bottleneck, ModifiedResNet
from clip_jax.nn.vit import PatchEmbedding, VisionTransformer

# Each layer that becomes operators, and what replaces it.
REPLACEMENTS = {
    Linear: OnnxLinear,
    LayerNorm: OnnxLayerNorm,
    LayerScale: OnnxLayerScale,
    MLP: OnnxMLP,
    Transformer: OnnxTransformer,
    PatchEmbedding: OnnxPatchEmbedding,
    VisionTransformer: OnnxVisionTransformer,
    ProbePool: OnnxProbePool,
    Bottleneck: OnnxBottleneck,
    AttentionPool: OnnxAttentionPool,
    ModifiedResNet: OnnxResNet,
}


def use_onnx_operators(model: CLIP) -> None:
    """Swaps layers of a float32 model in evaluation mode, in place, for those of this room.

    Its parameters must be arrays, not traced: some are divided or multiplied with others here.
    """

    def replacement(layer: nnx.Module) -> nnx.Module | None:
        new = REPLACEMENTS.get(type(layer))
        return None if new is None else new(layer)

    swap_layers(model, replacement)
