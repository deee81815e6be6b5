"""Convolutions in the form that is fastest with XLA's CPU backend (jaxlib 0.10).

The figures are in benchmarks/results/encode_profile.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.backends.cpu.linear import multiply, multiply_transposed, transpose
from clip_jax.backends.cpu.winograd import winograd_convolution, winograd_kernels
from clip_jax.backends.swap import adopt
from clip_jax.nn.resnet import Conv


class PointwiseConv(Conv):
    """A 1x1 convolution as a matrix product: up to five times as fast."""

    def __init__(self, conv: Conv):
        adopt(self, conv)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return multiply(x, self.kernel[...].astype(x.dtype)).astype(x.dtype)


class TransposedPointwiseConv(PointwiseConv):
    """`PointwiseConv` with its kernel stored transposed; for inference."""

    def __init__(self, conv: Conv):
        super().__init__(conv)
        transpose(self.kernel)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return multiply_transposed(x, self.kernel[...].astype(x.dtype))


class WinogradConv(Conv):
    """A 3x3 convolution of stride 1 by Winograd's filtering; for inference, in float32."""

    def __init__(self, conv: Conv):
        adopt(self, conv)
        matrices = winograd_kernels(np.asarray(self.kernel[...]))
        self.winograd_kernels = nnx.List(nnx.Param(jax.device_put(m)) for m in matrices)
        del self.kernel

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return winograd_convolution(x, [kernel[...] for kernel in self.winograd_kernels])


class ProductsConv(Conv):
    """A 3x3 convolution of stride 1 as nine matrix products of the shifted pixels.

    In bfloat16 on CPUs with matrix units, it is three times as fast as XLA's convolution, and 1.6
    times as fast as Winograd's in float32.
    """

    def __init__(self, conv: Conv):
        adopt(self, conv)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        kernel = self.kernel[...].astype(x.dtype)
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        first, *others = (
            multiply(padded[:, row : row + h, column : column + w], kernel[row, column])
            for row in range(3)
            for column in range(3)
        )
        return sum(others, first).astype(x.dtype)


class SpaceToDepthConv(Conv):
    """A 3x3 convolution of stride 2 on an even size as one of stride 1, after space to depth.

    With twelve channels instead of three it is up to three times as fast.
    """

    def __init__(self, conv: Conv):
        adopt(self, conv)
        kernel = np.asarray(self.kernel[...])
        i, o = kernel.shape[2:]
        # Padded above and to the left to 4x4, to align the kernel with the squares of 2x2 pixels.
        padded = np.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
        kernel = padded.reshape(2, 2, 2, 2, i, o).transpose(0, 2, 1, 3, 4, 5)
        self.kernel.set_value(jax.device_put(kernel.reshape(2, 2, 4 * i, o)))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        b, h, w, i = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, i).transpose(0, 1, 3, 2, 4, 5)
        return jax.lax.conv_general_dilated(
            x.reshape(b, h // 2, w // 2, 4 * i),
            self.kernel[...].astype(x.dtype),
            (1, 1),
            [(1, 0)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
