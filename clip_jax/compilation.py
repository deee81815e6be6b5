"""JAX's persistent compilation cache, for a block of code."""

import contextlib
import os
import warnings
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from clip_jax.placement import default_device

# Platforms without a cache: a CPU could be given programs compiled for another CPU.
UNSAFE = ("cpu",)


@contextlib.contextmanager
def compile_cache(folder: str | os.PathLike | None, platform: str | None = None) -> Iterator[None]:
    """Keeps the programs compiled in the block in `folder`, for later processes to load.

    It is for GPUs and TPUs, where compiling takes a good part of the time to the first embedding.
    JAX's settings are restored afterwards. On a CPU it warns and does nothing: a CPU could be given
    programs compiled for another one.

    Args:
        folder: created if it doesn't exist; any address that JAX takes, such as `gs://...`. None
            does nothing.
        platform: the platform to compile for, as `jax.Device.platform` names it; by default that
            of JAX's default device.
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
    compilation_cache.reset_cache()  # else it would keep the settings it read first
