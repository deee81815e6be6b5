"""What a device can do at most: the speed of one large matrix product."""

import functools
import time
from typing import Any


def matmul_gflops(dtype: str, size: int, calls: int) -> float:
    """GFLOP/s of one large matrix product in JAX, the best of three.

    Args:
        dtype: of the matrices, which are drawn.
        size: of the matrices, which are square.
        calls: that are timed together.
    """
    import jax

    matrix, product = _product(dtype, size)
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready([product(matrix) for _ in range(calls)])
        taken.append(time.perf_counter() - begin)
    return 2e-9 * size**3 * calls / min(taken)


@functools.cache
def _product(dtype: str, size: int) -> Any:
    import jax
    import jax.numpy as jnp

    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    # Of bfloat16 a CPU multiplies fast what it gives as float32.
    on_cpu = jax.default_backend() == "cpu"
    wide = {"preferred_element_type": jnp.float32} if on_cpu else {}
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest", **wide))
    jax.block_until_ready(product(matrix))
    return matrix, product
