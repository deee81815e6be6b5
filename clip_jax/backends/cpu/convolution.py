"""Convolutions as XLA's CPU backend computes them fastest (jaxlib 0.10, encode_profile.md)."""

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
    """A 1x1 convolution as a product of matrices: up to five times as fast."""

    def __init__(self, conv: Conv):
        adopt(self, conv)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return multiply(x, self.kernel[...].astype(x.dtype)).astype(x.dtype)


class TransposedPointwiseConv(PointwiseConv):
    """Likewise, with its kernel stored transposed; for inference."""

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
    """A 3x3 convolution of stride 1 as nine matrix products, of the pixels moved.

    On CPUs with matrix units for bfloat16, three times as fast as XLA's convolution of it and 1.6
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
    """A 3x3 convolution of stride 2 on an even size, as one of stride 1 over 2x2 pixels at a time.

    Twelve channels instead of three: up to three times as fast.
    """

    def __init__(self, conv: Conv):
        adopt(self, conv)
        kernel = np.asarray(self.kernel[...])
        i, o = kernel.shape[2:]
        # A row above and a column to the left, so that the 4x4 pixels start where two by two do.
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
