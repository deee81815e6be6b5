"""Gradients of linear layers in the form that is fastest on CPUs, for training.

XLA's CPU backend transposes the first operand of a product over rows, and fuses the transposition
with the operations that made the operand, which then read memory column by column. With JAX's own
order these are sums of gradients; if `x` comes first, activations. Either took a quarter of a
training step (benchmarks/results/train_profile.md, jaxlib 0.10). So the kernel's gradient here is
a product of `x` transposed, with a barrier against fusion; in bfloat16 both gradients are products
of arrays laid out as they are multiplied. The bias's gradient is a sum of rows, because XLA splits
sums over two axes into windows, which are slow to read. On other platforms the barriers would
prevent useful fusions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from clip_jax.backends.cpu.linear import multiply
from clip_jax.backends.swap import adopt
from clip_jax.nn.linear import Linear


@jax.custom_vjp
def linear_in_training(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"]
) -> Float[Array, "*b o"]:
    """`x @ kernel + bias` in the dtype of `x`; kernel and bias have gradients of their own dtypes.

    Only reverse-mode differentiation works, and the backward products take the precision that is
    the default around the gradient.
    """
    return _linear_forward(x, kernel, bias)[0]


def _linear_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    y = multiply(x, kernel.astype(x.dtype))
    return (y + bias.astype(y.dtype)).astype(x.dtype), (x, kernel, bias)


def _linear_backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, kernel, bias = kept
    rows, gradient = jax.lax.optimization_barrier(
        (x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1]))
    )
    by_x = multiply(gradient, _transposed(kernel.astype(x.dtype))).reshape(x.shape)
    by_kernel = multiply(_transposed(rows), gradient)
    by_bias = gradient.sum(0, dtype=jnp.float32)
    return by_x.astype(x.dtype), by_kernel.astype(kernel.dtype), by_bias.astype(bias.dtype)


linear_in_training.defvjp(_linear_forward, _linear_backward)


def _transposed(matrix: Float[Array, "m n"]) -> Float[Array, "n m"]:
    """Transposes a matrix; bfloat16 in memory, since XLA has no fast product of transposed ones."""
    if matrix.dtype != jnp.bfloat16 or len(matrix) % 2:
        return matrix.T
    # By pairs of rows, so that XLA can't fold the transposition into the product.
    pairs = matrix.reshape(-1, 2, matrix.shape[-1])
    return pairs.transpose(2, 0, 1).reshape(matrix.shape[::-1])


class TrainedLinear(Linear):
    """`Linear` with the gradients of `linear_in_training`."""

    def __init__(self, linear: Linear):
        adopt(self, linear)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return linear_in_training(x, self.kernel[...], self.bias[...])
