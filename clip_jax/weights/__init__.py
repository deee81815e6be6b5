"""Loads weights by name or path: download, cache and native format."""

from clip_jax import lazy as _lazy

TYPE_CHECKING = False  # True for type checkers; at run time these names are imported on first use
if TYPE_CHECKING:
    from clip_jax.weights.cache import native_folder as native_folder
    from clip_jax.weights.cache import official_file as official_file
    from clip_jax.weights.configuration import config_of as config_of
    from clip_jax.weights.loader import load as load
    from clip_jax.weights.native_format import read_native as read_native
    from clip_jax.weights.native_format import save as save
    from clip_jax.weights.native_format import save_parameters as save_parameters
    from clip_jax.weights.places import cache_root as cache_root
    from clip_jax.weights.places import cached as cached
    from clip_jax.weights.reading import read_model as read_model
    from clip_jax.weights.tokenizers import load_tokenizer as load_tokenizer
    from clip_jax.weights.towers import load_text_model as load_text_model
    from clip_jax.weights.towers import load_vision_model as load_vision_model

_NAMES = {
    "native_folder": "cache",
    "official_file": "cache",
    "config_of": "configuration",
    "load": "loader",
    "read_native": "native_format",
    "save": "native_format",
    "save_parameters": "native_format",
    "cache_root": "places",
    "cached": "places",
    "load_tokenizer": "tokenizers",
    "read_model": "reading",
    "load_text_model": "towers",
    "load_vision_model": "towers",
}
__all__ = list(_NAMES)  # pyright: ignore

__getattr__, __dir__ = _lazy.attach(__name__, _NAMES)
