"""The ModifiedResNet by ONNX's operators: channels first, and norms within the convolutions."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clip_jax.backends.onnx.layers import add, attend, node, part, reshape, transpose
from clip_jax.backends.onnx.towers import convolution
from clip_jax.backends.swap import adopt
from clip_jax.nn.layers import EPSILON, Tap, ignore
from clip_jax.nn.resnet import AttentionPool, BatchNorm, Bottleneck, Conv, ModifiedResNet


def normed(x: Float[Array, "b i h w"], conv: Conv, norm: BatchNorm) -> Float[Array, "b o h2 w2"]:
    """Applies a convolution and the norm after it, by stored statistics, as one convolution."""
    scale, bias, mean, var = (
        np.asarray(a[...], np.float64) for a in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    gain = scale / np.sqrt(var + EPSILON)
    kernel = (np.asarray(conv.kernel[...]) * gain).transpose(3, 2, 0, 1)  # o i k k
    inputs = (jnp.asarray(a.astype(np.float32)) for a in (kernel, bias - mean * gain))
    strides, padding = (conv.stride, conv.stride), conv.size // 2
    return node(
        "Conv",
        convolution(strides, padding),
        x,
        *inputs,
        strides=strides,
        kernel_shape=(conv.size, conv.size),
        pads=(padding,) * 4,
    )


def relu(x: Array) -> Array:
    """Returns the positive part."""
    return node("Relu", jax.nn.relu, x)


def average_pool(x: Float[Array, "b c h w"], size: int) -> Float[Array, "b c h2 w2"]:
    """Averages squares that don't overlap."""
    if size == 1:
        return x

    def compute(a: Array) -> Array:
        window = (1, 1, size, size)
        return jax.lax.reduce_window(a, 0.0, jax.lax.add, window, window, "VALID") / size**2

    sides = (size, size)
    return node("AveragePool", compute, x, kernel_shape=sides, strides=sides)


class OnnxBottleneck(Bottleneck):
    """`Bottleneck` over arrays whose channels come first."""

    def __init__(self, block: Bottleneck):
        adopt(self, block)

    def __call__(self, x: Float[Array, "b i h w"]) -> Float[Array, "b o h2 w2"]:
        identity = x
        if self.downsample is not None:
            conv, norm = cast(tuple[Conv, BatchNorm], tuple(self.downsample))
            identity = normed(average_pool(x, self.stride), conv, norm)
        x = relu(normed(x, self.conv1, self.bn1))
        x = relu(normed(x, self.conv2, self.bn2))
        return relu(add(normed(average_pool(x, self.stride), self.conv3, self.bn3), identity))


class OnnxAttentionPool(AttentionPool):
    """`AttentionPool` over arrays whose channels come first."""

    def __init__(self, pool: AttentionPool):
        adopt(self, pool)

    def __call__(self, x: Float[Array, "b c h w"]) -> Float[Array, "b d"]:
        channels = x.shape[1]
        x = transpose(reshape(x, 0, channels, -1), 0, 2, 1)  # b n c
        mean = node("ReduceMean", lambda a: a.mean(1, keepdims=True), x, (1,), keepdims=1)
        x = node("Concat", lambda a, b: jnp.concatenate([a, b], 1), mean, x, axis=1)
        x = add(x, self.positional_embedding[...])  # b n+1 c
        q, k, v = self.q_proj(part(x, 1, 0, 1)), self.k_proj(x), self.v_proj(x)
        return self.c_proj(reshape(attend(q, k, v, self.num_heads), -1, channels))


class OnnxResNet(ModifiedResNet):
    """`ModifiedResNet` whose arrays have their channels first."""

    def __init__(self, tower: ModifiedResNet):
        adopt(self, tower)

    def __call__(self, images: Float[Array, "b n n 3"], tap: Tap = ignore) -> Float[Array, "b d"]:
        x = self.stem(transpose(images, 0, 3, 1, 2))
        for i in range(1, 5):
            for block in getattr(self, f"layer{i}"):
                x = block(x)
        return self.attnpool(x)

    def stem(self, images: Float[Array, "b 3 n n"]) -> Float[Array, "b w h h"]:
        x = relu(normed(images, self.conv1, self.bn1))
        x = relu(normed(x, self.conv2, self.bn2))
        return average_pool(relu(normed(x, self.conv3, self.bn3)), 2)
