"""Loads weights by name or path: download, cache and native format."""

from clip_jax.weights.cache import cache_root as cache_root
from clip_jax.weights.cache import cached as cached
from clip_jax.weights.cache import native_folder as native_folder
from clip_jax.weights.cache import official_file as official_file
from clip_jax.weights.loader import load as load
from clip_jax.weights.native_format import read_native as read_native
from clip_jax.weights.native_format import save as save
from clip_jax.weights.native_format import save_parameters as save_parameters
