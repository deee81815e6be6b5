"""The ModifiedResNet of CLIP: three-convolution stem, anti-aliased strides, attention pooling."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.config import ResNetConfig
from clip_jax.nn.layers import (
    EPSILON,
    MANY_SEQUENCES,
    Tap,
    attend,
    attend_from,
    ignore,
    in_slices,
    run_block,
    split_heads,
)
from clip_jax.nn.linear import (
    Initializer,
    Linear,
    multiply,
    normal,
    ones,
    parameter,
    uniform_fan_in,
    zeros,
)
from clip_jax.nn.winograd import winograd_convolution

MOMENTUM = 0.1  # PyTorch's sense: the share of the new value


class Conv(nnx.Module):
    """A convolution without bias, padded so that stride 1 keeps the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        rngs: nnx.Rngs | None,
    ):
        self.size, self.stride = size, stride
        # Another than "direct" is set by `rearrange_for_cpu`.
        self.form: Literal["direct", "transposed", "winograd", "squares", "products"] = "direct"
        self.winograd_kernels = nnx.List()
        init = uniform_fan_in(in_channels * size**2)
        self.kernel = parameter(rngs, init, size, size, in_channels, out_channels)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        if self.form == "winograd":
            return winograd_convolution(x, [kernel[...] for kernel in self.winograd_kernels])
        if self.form == "squares":
            return convolve_squares(x, self.kernel[...])
        kernel = self.kernel[...].astype(x.dtype)
        if self.form == "products":
            return convolve_by_products(x, kernel)
        if self.size == 1:  # up to five times as fast as XLA's convolution on CPUs
            return multiply(x, kernel, self.form == "transposed").astype(x.dtype)
        padding = self.size // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def convolve_by_products(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h w o"]:
    """A 3x3 convolution of stride 1 as nine matrix products, of the pixels moved.

    On CPUs with matrix units for bfloat16, three times as fast as XLA's convolution of it and 1.6
    times as fast as Winograd's in float32.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    first, *others = (
        multiply(padded[:, row : row + h, column : column + w], kernel[row, column])
        for row in range(3)
        for column in range(3)
    )
    return sum(others, first).astype(x.dtype)


def square_kernel(kernel: Float[np.ndarray, "3 3 i o"]) -> Float[np.ndarray, "2 2 4*i o"]:
    """What `convolve_squares` takes for a kernel."""
    i, o = kernel.shape[2:]
    # A row above and a column to the left, so that the 4x4 pixels start where a square does.
    padded = np.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    return padded.reshape(2, 2, 2, 2, i, o).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * i, o)


def convolve_squares(
    x: Float[Array, "b h w i"], kernel: Float[Array, "2 2 4*i o"]
) -> Float[Array, "b h2 w2 o"]:
    """A 3x3 convolution of stride 2 on an even size, as one of stride 1 over 2x2 squares of pixels.

    Twelve channels instead of three: up to three times as fast as XLA's convolution on CPUs.
    """
    b, h, w, i = x.shape
    squares = x.reshape(b, h // 2, 2, w // 2, 2, i).transpose(0, 1, 3, 2, 4, 5)
    return jax.lax.conv_general_dilated(
        squares.reshape(b, h // 2, w // 2, 4 * i),
        kernel,
        (1, 1),
        [(1, 0)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class BatchNorm(nnx.Module):
    """Batch normalisation in float32: by stored statistics, or by the batch's own in training.

    `model.train()` and `model.eval()` switch between the two; a fresh model is in evaluation. In
    training the running variance is that of a sample (n - 1), the batch's own is not (n), as in
    PyTorch.
    """

    def __init__(self, channels: int, *, scale_init: Initializer = ones, rngs: nnx.Rngs | None):
        self.use_running_average = True
        self.scale = parameter(rngs, scale_init, channels)
        self.bias = parameter(rngs, zeros, channels)
        self.mean = parameter(rngs, zeros, channels, kind=nnx.BatchStat)
        self.var = parameter(rngs, ones, channels, kind=nnx.BatchStat)
        # Counted in float32 because jax.grad over a whole model refuses integer leaves.
        self.num_batches_tracked = parameter(rngs, zeros, kind=nnx.BatchStat)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x.astype(jnp.float32)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
            count = y.size // y.shape[-1]
            self._track(mean, var * (count / max(count - 1, 1)))
        gain = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        return (y * gain + (self.bias[...] - mean * gain)).astype(x.dtype)

    def _track(self, mean: Float[Array, " c"], var: Float[Array, " c"]) -> None:
        mean, var = jax.lax.stop_gradient((mean, var))
        self.mean[...] = (1 - MOMENTUM) * self.mean[...] + MOMENTUM * mean
        self.var[...] = (1 - MOMENTUM) * self.var[...] + MOMENTUM * var
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1


def average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    """Means of `size` x `size` squares that don't overlap."""
    if size == 1:
        return x
    b, h, w, c = x.shape
    squares = x.reshape(b, h // size, size, w // size, size, c).astype(jnp.float32)
    # A sum of slices instead of a reduction: jaxlib 0.12.0.1 on CPU fuses the reduction with a
    # bfloat16 convolution before it into garbage.
    first, *others = [squares[:, :, i, :, j] for i in range(size) for j in range(size)]
    total = sum(others, first)
    return (total / size**2).astype(x.dtype)


class Bottleneck(nnx.Module):
    """The residual block of a ResNet-50 with its stride moved into an average pool."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int, rngs: nnx.Rngs | None):
        out_channels = self.expansion * planes
        self.stride = stride
        self.conv1 = Conv(in_channels, planes, 1, rngs=rngs)
        self.bn1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = Conv(planes, planes, 3, rngs=rngs)
        self.bn2 = BatchNorm(planes, rngs=rngs)
        self.conv3 = Conv(planes, out_channels, 1, rngs=rngs)
        # A gain of 0 makes a fresh block the identity.
        self.bn3 = BatchNorm(out_channels, scale_init=zeros, rngs=rngs)
        changes_shape = stride > 1 or in_channels != out_channels
        self.downsample = (
            nnx.List(
                [Conv(in_channels, out_channels, 1, rngs=rngs), BatchNorm(out_channels, rngs=rngs)]
            )
            if changes_shape
            else None
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        identity = x
        if self.downsample is not None:
            conv, bn = self.downsample
            identity = bn(conv(average_pool(x, self.stride)))
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(average_pool(x, self.stride)))
        return jax.nn.relu(x + identity)


class AttentionPool(nnx.Module):
    """Pools positions by attention from their mean, which stands before them as token 0."""

    def __init__(
        self,
        num_positions: int,
        num_features: int,
        num_heads: int,
        embed_dim: int,
        *,
        rngs: nnx.Rngs | None,
    ):
        init = normal(num_features**-0.5)
        self.num_heads = num_heads
        self.positional_embedding = parameter(rngs, init, num_positions + 1, num_features)
        self.q_proj = Linear(num_features, num_features, kernel_init=init, rngs=rngs)
        self.k_proj = Linear(num_features, num_features, kernel_init=init, rngs=rngs)
        self.v_proj = Linear(num_features, num_features, kernel_init=init, rngs=rngs)
        self.c_proj = Linear(num_features, embed_dim, kernel_init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)  # b n c
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)  # b n+1 c
        x = x + self.positional_embedding[...].astype(x.dtype)
        q = split_heads(self.q_proj(x[:, :1]), self.num_heads)  # b 1 h c
        key, value = self.k_proj, self.v_proj
        # Kernels that lie as `attend_from` takes them pay for any number of images.
        if len(x) < MANY_SEQUENCES and not key.is_transposed:
            k, v = split_heads(key(x), self.num_heads), split_heads(value(x), self.num_heads)
            return self.c_proj(attend(q, k, v).reshape(len(x), x.shape[-1]))
        x = attend_from(q[:, 0], x, key.upright, value.upright, value.bias[...])
        return self.c_proj(x)


class ModifiedResNet(nnx.Module):
    """Images to embeddings by convolutions (Radford et al. 2021, section 2.4)."""

    def __init__(self, config: ResNetConfig, embed_dim: int, *, rngs: nnx.Rngs | None):
        width = config.width
        self.rematerializes = False  # set by `rematerialize`
        # Images at a time in the stem, in the first two stages, in the last two.
        self.slice_sizes: tuple[int | None, int | None, int | None] = (None, None, None)
        self.conv1 = Conv(3, width // 2, 3, stride=2, rngs=rngs)
        self.bn1 = BatchNorm(width // 2, rngs=rngs)
        self.conv2 = Conv(width // 2, width // 2, 3, rngs=rngs)
        self.bn2 = BatchNorm(width // 2, rngs=rngs)
        self.conv3 = Conv(width // 2, width, 3, rngs=rngs)
        self.bn3 = BatchNorm(width, rngs=rngs)
        channels = width
        for i, depth in enumerate(config.stage_depths):
            planes = width * 2**i
            blocks = nnx.List()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(channels, planes, stride=stride, rngs=rngs))
                channels = Bottleneck.expansion * planes
            setattr(self, f"layer{i + 1}", blocks)
        self.attnpool = AttentionPool(
            config.num_positions, config.num_features, config.num_heads, embed_dim, rngs=rngs
        )

    def __call__(self, images: Float[Array, "b n n 3"], tap: Tap = ignore) -> Float[Array, "b d"]:
        x = in_slices(lambda x: self._first_half(x, tap), images, self.slice_sizes[1])
        x = in_slices(lambda x: self._second_half(x, tap), x, self.slice_sizes[2])
        return self.attnpool(x)  # from b n/32 n/32 32w

    def _first_half(self, images: Float[Array, "b n n 3"], tap: Tap) -> Float[Array, "b h w c"]:
        x = in_slices(self._stem, images, self.slice_sizes[0])
        tap("avgpool", x)
        x = self._stage(1, x, tap)
        return self._stage(2, x, tap)  # b n/8 n/8 8w

    def _second_half(self, x: Float[Array, "b h w c"], tap: Tap) -> Float[Array, "b h2 w2 c2"]:
        x = self._stage(3, x, tap)
        return self._stage(4, x, tap)  # b n/32 n/32 32w

    def _stem(self, images: Float[Array, "b n n 3"]) -> Float[Array, "b h w c"]:
        x = jax.nn.relu(self.bn1(self.conv1(images)))  # b n/2 n/2 w/2
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = jax.nn.relu(self.bn3(self.conv3(x)))  # b n/2 n/2 w
        return average_pool(x, 2)  # b n/4 n/4 w

    def _stage(self, i: int, x: Float[Array, "b h w c"], tap: Tap) -> Float[Array, "b h2 w2 c2"]:
        for j, block in enumerate(getattr(self, f"layer{i}")):
            x = run_block(block, x, self.rematerializes)
            tap(f"layer{i}.{j}", x)
        return x
