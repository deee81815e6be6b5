"""Programs that outlive the process: JAX's persistent compilation cache, for a block of code."""

import contextlib
import os
import warnings
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from clip_jax.placement import default_device

# Programs compiled for one CPU may be taken for another's.
UNSAFE = ("cpu",)


@contextlib.contextmanager
def compile_cache(folder: str | os.PathLike | None, platform: str | None = None) -> Iterator[None]:
    """Takes what is compiled inside from `folder`, and leaves it there for the next process.

    For GPUs and TPUs, where compiling takes a good part of the time to the first embedding. JAX's
    settings are as they were afterwards. On a CPU it warns and does nothing: programs compiled for
    one CPU may be taken for another's.

    Args:
        folder: made if it isn't there; any address that JAX takes, such as `gs://...`. None does
            nothing.
        platform: for which is compiled, as `jax.Device.platform` says it; that of JAX's default
            device unless it is given.
    """
    if folder is None:
        yield
        return
    if (platform or default_device().platform) in UNSAFE:
        warnings.warn(
            "the compile cache is for GPUs and TPUs; on a CPU nothing is kept. Leave it out.",
            stacklevel=3,
        )
        yield
        return
    settings = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": os.path.expanduser(os.fspath(folder)),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        _configure(settings)
        yield
    finally:
        _configure(before)


def _configure(settings: dict) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it has read its settings once and for all
