"""Names to files to parameter trees: download and cache, and the native format."""

from clip_jax.weights.cache import archive as archive
from clip_jax.weights.cache import cache_root as cache_root
from clip_jax.weights.cache import cached as cached
from clip_jax.weights.cache import native as native
from clip_jax.weights.load import load as load
from clip_jax.weights.native import read_native as read_native
from clip_jax.weights.native import save as save
from clip_jax.weights.native import save_parameters as save_parameters
