"""What several rows of a section share: models, references, compiled programs."""

import gc
import sys
from collections.abc import Callable, Hashable
from typing import Any

_kept: dict[Hashable, Any] = {}


def once(key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` gives, made the first time that the key is asked for."""
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]


def forget() -> None:
    """Drops everything, so that a device whose memory has run out has all of it again."""
    _kept.clear()
    _collect()


def _collect() -> None:
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()
