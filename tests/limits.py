"""Limits on what this process may have of the machine, for as long as a block runs."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Within, this process may have at most that: `resource.RLIMIT_NOFILE` and the like."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def files_end_at(size: int) -> contextlib.AbstractContextManager[None]:
    """A disk that takes no more: writing fails in the middle of a file."""
    return limited(resource.RLIMIT_FSIZE, size)


def few_descriptors(more: int) -> contextlib.AbstractContextManager[None]:
    """So many more files can be open at a time than are now."""
    return limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + more)


def no_descriptors() -> contextlib.AbstractContextManager[None]:
    """No file can be opened: `ulimit -n` is reached."""
    return limited(resource.RLIMIT_NOFILE, 0)
