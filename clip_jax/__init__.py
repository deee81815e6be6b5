"""CLIP in JAX and Flax: the official checkpoints, without PyTorch, proven equal to PyTorch.

Example:
    >>> import clip_jax
    >>> clip_jax.tokenize("a diagram", context_length=6)
    array([[49406,   320, 22697, 49407,     0,     0]], dtype=int32)
"""

from importlib.metadata import version

from clip_jax import convert as convert
from clip_jax.catalog import available_models as available_models
from clip_jax.compilation import compile_cache as compile_cache
from clip_jax.config import CLIPConfig as CLIPConfig
from clip_jax.encoder import Encoder as Encoder
from clip_jax.errors import CheckpointError as CheckpointError
from clip_jax.errors import DownloadError as DownloadError
from clip_jax.nn import CLIP as CLIP
from clip_jax.nn import from_parameters as from_parameters
from clip_jax.nn import parameters as parameters
from clip_jax.preprocess import Preprocess as Preprocess
from clip_jax.preprocess import open_image as open_image
from clip_jax.tokenizer import tokenize as tokenize
from clip_jax.weights import load as load
from clip_jax.weights import save as save

__version__ = version("clip-jax-flax")
