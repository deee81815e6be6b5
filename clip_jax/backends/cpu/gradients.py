"""The gradients of linear layers as CPUs compute them fastest, for training.

XLA's CPU backend transposes what a product over rows begins with, and fuses that with whatever
made it, which is then read column by column: sums of gradients with JAX's own order, in which the
gradient of the result begins; activations where `x` does. Either took a quarter of a training step
(benchmarks/results/train_profile.md, jaxlib 0.10). So the gradient by the kernel is a product of
`x` transposed, kept from fusion; in bfloat16 both gradients are products of what lies in memory as
it is multiplied. The one by the bias is a sum of rows, because XLA cuts sums over two axes into
windows that it reads slowly. Elsewhere the barriers would keep operations from fusion that gain by
it.
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
    """The transpose; of bfloat16 in memory, since XLA has no fast product of one that isn't."""
    if matrix.dtype != jnp.bfloat16 or len(matrix) % 2:
        return matrix.T
    # By pairs of rows, which XLA can't see through: else it would multiply `matrix` as it lies.
    pairs = matrix.reshape(-1, 2, matrix.shape[-1])
    return pairs.transpose(2, 0, 1).reshape(matrix.shape[::-1])


class TrainedLinear(Linear):
    """`Linear` with the gradients of `linear_in_training`."""

    def __init__(self, linear: Linear):
        adopt(self, linear)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return linear_in_training(x, self.kernel[...], self.bias[...])
