"""In all tests an array meets one of another rank only where the code says along which axes.

So whatever they run also runs for users who have set JAX's `numpy_rank_promotion` to "raise".
"""

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

REFUSED = "jax_numpy_rank_promotion='raise'"


def promote() -> jax.Array:
    return jnp.ones((2, 3)) + jnp.ones(3)


def test_promoting_a_rank_implicitly_is_an_error():
    with pytest.raises(ValueError, match=REFUSED):
        promote()


def test_it_is_in_other_threads_and_processes_too():
    caught = []

    def run() -> None:
        with pytest.raises(ValueError, match=REFUSED):
            promote()
        caught.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert caught
    program = "import jax; print(jax.config.jax_numpy_rank_promotion)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "raise\n", done.stderr
