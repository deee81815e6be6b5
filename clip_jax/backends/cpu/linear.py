"""Products of rows and kernels on CPUs.

In float32, kernels are stored transposed, which XLA's library repacks least: up to 1.7 times as
fast for few rows, equally fast for many. In bfloat16, the products have float32 results: only for
these XLA uses the matrix units (AMX), up to five times as fast as float32; others it computes in
float32, converting back and forth. Measured with jaxlib 0.10 on Xeons and EPYCs
(benchmarks/results/encode_profile.md).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clip_jax.backends.swap import adopt
from clip_jax.nn.linear import Linear
from clip_jax.nn.vit import PatchEmbedding


def multiply(x: Float[Array, "*b i"], kernel: Float[Array, "..."]) -> Float[Array, "*b o"]:
    """Multiplies rows by a kernel whose last axis is the outputs; bfloat16 gives float32."""
    kernel = kernel.reshape(-1, kernel.shape[-1])
    if x.dtype != jnp.bfloat16:
        return x @ kernel
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    if x.size != x.shape[-1]:
        return product(x, kernel)
    # XLA would convert the kernel to float32 for one row: four copies take half the time.
    rows = jnp.broadcast_to(x.reshape(1, -1), (4, x.shape[-1]))
    return product(rows, kernel)[0].reshape(*x.shape[:-1], -1)


def multiply_transposed(
    x: Float[Array, "*b i"], kernel: Float[Array, "o ..."]
) -> Float[Array, "*b o"]:
    """Multiplies rows by a kernel whose first axis is the outputs."""
    kernel = kernel.reshape(len(kernel), -1)
    if x.size == x.shape[-1]:  # one row, for which XLA would transpose the kernel first
        return (kernel @ x.reshape(-1)).reshape(*x.shape[:-1], -1)
    return x @ kernel.T


def transpose(kernel: nnx.Variable) -> None:
    """Moves the last axis of an array to the front, in place."""
    # By NumPy, because JAX would compile a program for each shape.
    array = np.moveaxis(np.asarray(kernel[...]), -1, 0)
    kernel.set_value(jax.device_put(np.ascontiguousarray(array)))


def transposed_kernel(linear: Linear) -> Float[Array, "o i"]:
    """Returns the transposed kernel of a linear layer, whichever way it is stored."""
    kernel = linear.kernel[...]
    return kernel if isinstance(linear, TransposedLinear) else kernel.T


class TransposedLinear(Linear):
    """`x @ kernel.T + bias`: `Linear` with its kernel stored transposed."""

    def __init__(self, linear: Linear):
        adopt(self, linear)
        transpose(self.kernel)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = multiply_transposed(x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(y.dtype)


class WideLinear(Linear):
    """`Linear` in bfloat16, with products that use AMX."""

    def __init__(self, linear: Linear):
        adopt(self, linear)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = multiply(x, self.kernel[...].astype(x.dtype))
        return (y + self.bias[...].astype(y.dtype)).astype(x.dtype)


class TransposedPatchEmbedding(PatchEmbedding):
    """`PatchEmbedding` with its kernel stored transposed."""

    def __init__(self, embedding: PatchEmbedding):
        adopt(self, embedding)
        transpose(self.kernel)

    def project(self, patches: Float[Array, "b p ppc"]) -> Float[Array, "b p w"]:
        """As the layer it replaces."""
        return multiply_transposed(patches, self.kernel[...].astype(patches.dtype))


class WidePatchEmbedding(PatchEmbedding):
    """`PatchEmbedding` in bfloat16, with products that use AMX."""

    def __init__(self, embedding: PatchEmbedding):
        adopt(self, embedding)

    def project(self, patches: Float[Array, "b p ppc"]) -> Float[Array, "b p w"]:
        """As the layer it replaces."""
        kernel = self.kernel[...].astype(patches.dtype)
        return multiply(patches, kernel).astype(patches.dtype)
