"""The linear layer, and the creation of parameters for all layers.

Parameters are stored in float32 and cast to the dtype of the activations on use, so a model
computes in the dtype to which its entry point casts the inputs. Built without `rngs`, a layer holds
shapes instead of arrays: an abstract model, to be filled from a checkpoint.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float

Rngs = nnx.Rngs | None


def uniform_fan_in(fan_in: int) -> Initializer:
    """Returns PyTorch's default for linear layers and convolutions: uniform in +-1/sqrt(fan in)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def parameter(
    rngs: Rngs, init: Initializer, *shape: int, kind: type[nnx.Variable] = nnx.Param
) -> nnx.Variable:
    """Creates a float32 parameter with `init`, or only its shape if `rngs` is None."""
    if rngs is None:
        return kind(jax.ShapeDtypeStruct(shape, jnp.float32))
    return kind(init(rngs.params(), shape, jnp.float32))


def project(x: Float[Array, "b i"], kernel: Float[Array, "i o"]) -> Float[Array, "b o"]:
    """Returns `x @ kernel`, summed in float32 whatever the dtype of `x`."""
    y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return y.astype(x.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rngs: Rngs,
    ):
        default = uniform_fan_in(in_features)
        self.kernel = parameter(rngs, kernel_init or default, in_features, out_features)
        self.bias = parameter(rngs, bias_init or default, out_features)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)
