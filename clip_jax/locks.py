"""File locks that are released when their process ends, however it dies."""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# Not filelock: on file systems without locks it falls back to files that survive a kill.

# Seconds to wait for a process that is ending: SIGTERM's grace period, and some more.
DYING = 15.0
# Seconds between two tries.
_EVERY = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class InUse(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: str, what: str) -> Iterator[None]:
    """Holds a lock file during the block, and removes it afterwards. Its folder must exist.

    If the file system has no locks, or the folder isn't writable, the block runs without a lock.

    Args:
        path: the path of the lock file.
        what: what is locked, for the message.

    Raises:
        InUse: another process still holds it after `DYING` seconds; the message names it.
        OSError: the file can't be created.
    """
    descriptor = None if fcntl is None else _acquire(path, what, time.monotonic() + DYING)
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        # Removed while held: a waiting process sees that its descriptor is not this file any more.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _acquire(path: str, what: str, deadline: float) -> int | None:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return None
            raise
        try:
            assert fcntl is not None
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
                return descriptor
            os.close(descriptor)  # its holder has just removed it
            continue
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                return None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise OSError(error.errno, error.strerror, path) from None
        except BaseException:
            os.close(descriptor)
            raise
        if time.monotonic() > deadline:
            raise InUse(
                f"another process{holder} is at work in {what}: wait until it has ended, or end "
                "it; then start the same command again"
            )
        time.sleep(_EVERY)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, 300, 0).decode(errors="replace")
    except OSError:
        return ""
    return f" ({text})" if text else ""
