"""Layers of the same interface as those of `clip_jax.nn` that are faster on a platform.

Each file says what it replaces, why the platform needs it, and where it was measured, and has a
test that it equals `nn`. `optimize` swaps the layers of a model for a platform. `defaults` holds
the choices made by measurement.
"""

from clip_jax.backends.apply import optimize as optimize
from clip_jax.backends.apply import optimize_for_training as optimize_for_training
from clip_jax.backends.apply import use_attention as use_attention
from clip_jax.backends.defaults import compiler_options as compiler_options
from clip_jax.backends.defaults import default_attention as default_attention
from clip_jax.backends.defaults import default_batch_size as default_batch_size
from clip_jax.backends.half import cast as cast
