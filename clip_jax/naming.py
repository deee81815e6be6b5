"""Which picture a thread is reading, for warnings of Pillow's, which don't name it."""

import contextlib
import threading
from collections.abc import Iterator

_now = threading.local()


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Notes that this thread reads a picture in the block."""
    before = current()
    _now.name = name
    try:
        yield
    finally:
        _now.name = before


def current() -> str | None:
    """Returns the name of the picture that this thread reads; None if it reads none."""
    return getattr(_now, "name", None)
