"""The ModifiedResNet of CLIP: three-convolution stem, anti-aliased strides, attention pooling."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, normal, ones, zeros
from jaxtyping import Array, Float

from clip_jax.config import ResNetConfig
from clip_jax.nn.layers import EPSILON, QueryAttention, Tap, ignore
from clip_jax.nn.linear import Rngs, parameter, uniform_fan_in

MOMENTUM = 0.1  # as in PyTorch: the weight of the new value


class Conv(nnx.Module):
    """A convolution without bias, padded so that stride 1 keeps the size."""

    def __init__(
        self, in_channels: int, out_channels: int, size: int, *, stride: int = 1, rngs: Rngs
    ):
        self.size, self.stride = size, stride
        init = uniform_fan_in(in_channels * size**2)
        self.kernel = parameter(rngs, init, size, size, in_channels, out_channels)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        padding = self.size // 2
        return jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class BatchNorm(nnx.Module):
    """Batch normalisation in float32: by stored statistics, or by the batch's own in training.

    `model.train()` and `model.eval()` switch between the two; a new model is in evaluation mode.
    In training the batch is normalised by its biased variance (n), while the running variance is
    unbiased (n - 1), as in PyTorch.
    """

    def __init__(self, channels: int, *, scale_init: Initializer = ones, rngs: Rngs):
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
    """Averages non-overlapping squares of `size` x `size`."""
    if size == 1:
        return x
    b, h, w, c = x.shape
    squares = x.reshape(b, h // size, size, w // size, size, c).astype(jnp.float32)
    # A sum of slices instead of a reduction: jaxlib 0.12.0.1 on CPU computes garbage when it fuses
    # the reduction with a bfloat16 convolution before it.
    first, *others = [squares[:, :, i, :, j] for i in range(size) for j in range(size)]
    total = sum(others, first)
    return (total / size**2).astype(x.dtype)


class Bottleneck(nnx.Module):
    """The residual block of a ResNet-50, with its stride moved into an average pool."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int, rngs: Rngs):
        out_channels = self.expansion * planes
        self.stride = stride
        self.conv1 = Conv(in_channels, planes, 1, rngs=rngs)
        self.bn1 = BatchNorm(planes, rngs=rngs)
        self.conv2 = Conv(planes, planes, 3, rngs=rngs)
        self.bn2 = BatchNorm(planes, rngs=rngs)
        self.conv3 = Conv(planes, out_channels, 1, rngs=rngs)
        # A scale of 0 makes a new block the identity.
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


class AttentionPool(QueryAttention):
    """Pools positions by attention from their mean, which is token 0."""

    def __init__(
        self, num_positions: int, num_features: int, num_heads: int, embed_dim: int, *, rngs: Rngs
    ):
        init = normal(num_features**-0.5)
        self.positional_embedding = parameter(rngs, init, num_positions + 1, num_features)
        super().__init__(num_features, embed_dim, num_heads, init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        x = self.tokens(x)  # b n+1 c
        return self.attend(x[:, :1], x)

    def tokens(self, x: Float[Array, "b h w c"]) -> Float[Array, "b l c"]:
        """Returns the mean and all positions, with positional embeddings."""
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)  # b n c
        x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        return x + self.positional_embedding[...].astype(x.dtype)


class ModifiedResNet(nnx.Module):
    """Embeds images by convolutions (Radford et al. 2021, section 2.4)."""

    def __init__(self, config: ResNetConfig, embed_dim: int, *, rngs: Rngs):
        width = config.width
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
        x = self.stem(images)  # b n/4 n/4 w
        tap("avgpool", x)
        for i in range(1, 5):
            x = self.stage(i, x, tap)
        return self.attnpool(x)  # from b n/32 n/32 32w

    def stem(self, images: Float[Array, "b n n 3"]) -> Float[Array, "b h w c"]:
        """Applies three convolutions and a pool, in place of one convolution."""
        x = jax.nn.relu(self.bn1(self.conv1(images)))  # b n/2 n/2 w/2
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = jax.nn.relu(self.bn3(self.conv3(x)))  # b n/2 n/2 w
        return average_pool(x, 2)

    def stage(self, i: int, x: Float[Array, "b h w c"], tap: Tap) -> Float[Array, "b h2 w2 c2"]:
        """Applies stage `i` of 1 to 4; all but the first halve the sides."""
        for j, block in enumerate(getattr(self, f"layer{i}")):
            x = block(x)
            tap(f"layer{i}.{j}", x)
        return x
