"""What every test runs under: several devices, and shapes checked as the code runs."""

import os

# Before jax is imported: sharding is tested everywhere, without an accelerator.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook  # noqa: E402

from tests import quickly  # noqa: E402

os.environ.setdefault("XLA_FLAGS", quickly.ENVIRONMENT["XLA_FLAGS"])  # read with the first device

# The layers' signatures say their shapes; here they are executed. The public entry points are not
# hooked: they have errors of their own, which are tested.
install_import_hook(
    [
        *(f"clip_jax.nn.{x}" for x in ("layers", "linear", "vit", "resnet", "text", "pixels")),
        "clip_jax.backends",
    ],
    "beartype.beartype",
)
