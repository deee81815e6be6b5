"""What every test runs under: several devices, shapes checked, ranks promoted only on purpose."""

import gc
import os
import sys

# Before jax is imported: sharding is tested everywhere, without an accelerator.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# An array meets one of another rank only where the code says along which axes.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import quickly  # noqa: E402

os.environ.setdefault("XLA_FLAGS", quickly.ENVIRONMENT["XLA_FLAGS"])  # read with the first device

# The signatures say their shapes; here they are executed.
install_import_hook(["clip_jax.nn", "clip_jax.backends"], "beartype.beartype")

# Modules with fixtures that several test files share.
pytest_plugins = [
    "tests.checkpoint_files",
    "tests.embedding_jobs",
    "tests.encoders",
    "tests.model_files",
    "tests.object_stores",
    "tests.servers",
    "tests.serving",
    "tests.training",
    "tests.training_runs",
]


# Linux gives a process 65,530 mappings of memory, and XLA crashes without one for its next program.
MOST_MAPPINGS = 20_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Drops compiled programs after a module where there are too many of them."""
    yield
    if sys.platform == "linux" and "jax" in sys.modules:
        with open("/proc/self/maps", "rb") as file:
            count = sum(1 for _ in file)
        if count > MOST_MAPPINGS:
            sys.modules["jax"].clear_caches()
            gc.collect()


@pytest.fixture(scope="session")
def model():
    """The model of tests that only need some model."""
    from tests.models import SMALL_VIT, small

    return small(SMALL_VIT)


@pytest.fixture
def ranks_promoted():
    """For tests that call layers themselves: `x @ kernel + bias` promotes the rank of the bias.

    What users call allows that where it runs a tower (`clip_jax.nn.clip.computing`).
    """
    import jax

    with jax.numpy_rank_promotion("allow"):
        yield
