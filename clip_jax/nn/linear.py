"""Linear layers, and how the parameters of all layers come to be.

Parameters are stored in float32 and cast to the dtype of the activations on use, so the entry
point alone decides in which dtype a model computes. Built without `rngs`, a layer holds shapes
instead of arrays: the abstract model that checkpoints are poured into.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Initializer = jax.nn.initializers.Initializer

zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def uniform_fan_in(fan_in: int) -> Initializer:
    """PyTorch's default for linear and convolution arrays: uniform within 1/sqrt(fan in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float) -> Initializer:
    """A normal distribution around 0."""
    return jax.nn.initializers.normal(stddev)


def parameter(
    rngs: nnx.Rngs | None, init: Initializer, *shape: int, kind: type[nnx.Variable] = nnx.Param
) -> nnx.Variable:
    """A float32 array under `init`, or only its shape where there are no random numbers."""
    if rngs is None:
        return kind(jax.ShapeDtypeStruct(shape, jnp.float32))
    return kind(init(rngs.params(), shape, jnp.float32))


def multiply(
    x: Float[Array, "*b i"], kernel: Float[Array, "..."], is_transposed: bool = False
) -> Float[Array, "*b o"]:
    """Rows times a kernel, whose outputs are its last axis or, transposed, its first.

    Of bfloat16 the products are float32 on CPUs: for these alone XLA takes the matrix units (AMX),
    up to five times as fast as float32; it computes others in float32, converting back and forth.
    """
    if not is_transposed:
        kernel = kernel.reshape(-1, kernel.shape[-1])
        if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
            return _multiply_wide(x, kernel)
        return x @ kernel
    kernel = kernel.reshape(len(kernel), -1)
    if x.size == x.shape[-1]:  # one row, for which XLA on CPUs would transpose the kernel first
        return (kernel @ x.reshape(-1)).reshape(*x.shape[:-1], -1)
    return x @ kernel.T


def _multiply_wide(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    if x.size != x.shape[-1]:
        return product(x, kernel)
    # One row, for which XLA would convert the kernel to float32: several of it take half the time.
    rows = jnp.broadcast_to(x.reshape(1, -1), (4, x.shape[-1]))
    return product(rows, kernel)[0].reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def linear_in_training(
    x: Float[Array, "*b i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"]
) -> Float[Array, "*b o"]:
    """`x @ kernel + bias` in the dtype of `x`, with gradients as CPUs compute them fastest.

    XLA's CPU backend transposes what a product over rows begins with, and fuses that with whatever
    made it, which is then read column by column: sums of gradients with JAX's own order, in which
    the gradient of the result begins; activations where `x` does. Either took a quarter of a
    training step. So the gradient by the kernel is a product of `x` upright, kept from fusion; in
    bfloat16 both gradients are products of what lies in memory as it is multiplied. The one by the
    bias is a sum of rows, because XLA cuts sums over two axes into windows that it reads slowly.
    Kernel and bias have gradients of their own dtypes. Only reverse-mode differentiation works, and
    the backward products take the precision that is the default around the gradient.
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
    by_x = multiply(gradient, _upright(kernel.astype(x.dtype))).reshape(x.shape)
    by_kernel = multiply(_upright(rows), gradient)
    by_bias = gradient.sum(0, dtype=jnp.float32)
    return by_x.astype(x.dtype), by_kernel.astype(kernel.dtype), by_bias.astype(bias.dtype)


linear_in_training.defvjp(_linear_forward, _linear_backward)


def _upright(matrix: Float[Array, "m n"]) -> Float[Array, "n m"]:
    """The transpose; of bfloat16 in memory, since XLA has no fast product of one that isn't."""
    if matrix.dtype != jnp.bfloat16 or len(matrix) % 2:
        return matrix.T
    # By pairs of rows, which XLA can't see through: else it would multiply `matrix` as it lies.
    pairs = matrix.reshape(-1, 2, matrix.shape[-1])
    return pairs.transpose(2, 0, 1).reshape(matrix.shape[::-1])


class Linear(nnx.Module):
    """`x @ kernel + bias`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: nnx.Rngs | None,
    ):
        default = uniform_fan_in(in_features)
        self.is_transposed = False  # set by `rearrange_for_cpu`
        self.is_trained = False  # set by `arrange_for_training`
        self.kernel = parameter(rngs, kernel_init or default, in_features, out_features)
        self.bias = parameter(rngs, bias_init or default, out_features)

    @property
    def upright(self) -> Float[Array, "o i"]:
        """The kernel transposed, whichever way round it is stored."""
        kernel = self.kernel[...]
        return kernel if self.is_transposed else kernel.T

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        if self.is_trained:
            return linear_in_training(x, self.kernel[...], self.bias[...])
        y = multiply(x, self.kernel[...].astype(x.dtype), self.is_transposed)
        return (y + self.bias[...].astype(y.dtype)).astype(x.dtype)
