"""What every test runs under: several devices, and shapes checked as the code runs."""

import os

# Before jax is imported: sharding is tested everywhere, without an accelerator.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
    "tests.training",
    "tests.training_runs",
]


@pytest.fixture(scope="session")
def model():
    """The model of tests that only need some model."""
    from tests.models import SMALL_VIT, small

    return small(SMALL_VIT)
