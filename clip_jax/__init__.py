"""CLIP in JAX and Flax: the official checkpoints, without PyTorch, proven equal to PyTorch.

Example:
    >>> import clip_jax
    >>> clip_jax.tokenize("a diagram", context_length=6)
    array([[49406,   320, 22697, 49407,     0,     0]], dtype=int32)
"""

from clip_jax import lazy as _lazy

TYPE_CHECKING = False  # True for type checkers; at run time these names are imported on first use
if TYPE_CHECKING:
    from clip_jax import backends as backends
    from clip_jax import catalog as catalog
    from clip_jax import compat as compat
    from clip_jax import compilation as compilation
    from clip_jax import config as config
    from clip_jax import convert as convert
    from clip_jax import embed as embed
    from clip_jax import encoder as encoder
    from clip_jax import errors as errors
    from clip_jax import evaluate as evaluate
    from clip_jax import export as export
    from clip_jax import nn as nn
    from clip_jax import parity as parity
    from clip_jax import preprocess as preprocess
    from clip_jax import search as search
    from clip_jax import serve as serve
    from clip_jax import shapes as shapes
    from clip_jax import sources as sources
    from clip_jax import storage as storage
    from clip_jax import tokenizer as tokenizer
    from clip_jax import train as train
    from clip_jax import weights as weights
    from clip_jax.catalog import available_models as available_models
    from clip_jax.compilation import compile_cache as compile_cache
    from clip_jax.config import CLIPConfig as CLIPConfig
    from clip_jax.config import SigLIPConfig as SigLIPConfig
    from clip_jax.encoder import Encoder as Encoder
    from clip_jax.errors import CheckpointError as CheckpointError
    from clip_jax.errors import DownloadError as DownloadError
    from clip_jax.model_tokenizer import Tokenizer as Tokenizer
    from clip_jax.nn import CLIP as CLIP
    from clip_jax.nn import SigLIP as SigLIP
    from clip_jax.nn import from_parameters as from_parameters
    from clip_jax.nn import parameters as parameters
    from clip_jax.preprocess import Preprocess as Preprocess
    from clip_jax.preprocess import open_image as open_image
    from clip_jax.sentence_piece import SentencePieceTokenizer as SentencePieceTokenizer
    from clip_jax.tokenizer import tokenize as tokenize
    from clip_jax.version import __version__ as __version__
    from clip_jax.weights import config_of as config_of
    from clip_jax.weights import load as load
    from clip_jax.weights import load_text_model as load_text_model
    from clip_jax.weights import load_tokenizer as load_tokenizer
    from clip_jax.weights import load_vision_model as load_vision_model
    from clip_jax.weights import save as save

_MODULES = (
    *("backends", "catalog", "compat", "compilation", "config", "convert", "embed", "encoder"),
    *("errors", "evaluate", "export", "nn", "parity", "preprocess", "search", "serve"),
    *("shapes", "sources", "storage", "tokenizer", "train", "weights"),
)
_NAMES = {
    "available_models": "catalog",
    "config_of": "weights",
    "compile_cache": "compilation",
    "CLIPConfig": "config",
    "SigLIPConfig": "config",
    "Encoder": "encoder",
    "CheckpointError": "errors",
    "DownloadError": "errors",
    "CLIP": "nn",
    "SigLIP": "nn",
    "from_parameters": "nn",
    "SentencePieceTokenizer": "sentence_piece",
    "Tokenizer": "model_tokenizer",
    "parameters": "nn",
    "Preprocess": "preprocess",
    "open_image": "preprocess",
    "tokenize": "tokenizer",
    "load": "weights",
    "load_text_model": "weights",
    "load_vision_model": "weights",
    "load_tokenizer": "weights",
    "save": "weights",
    "__version__": "version",
}

# For `from clip_jax import *`; without the modules that need an extra.
__all__ = ["convert", *(name for name in _NAMES if not name.startswith("_"))]  # pyright: ignore

__getattr__, __dir__ = _lazy.attach(__name__, _NAMES, _MODULES)
