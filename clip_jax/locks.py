"""Locks of files, which end with the process that holds them, however it dies."""

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

# Not by the library filelock: where there are no locks it falls back to files that outlive a kill.

# Seconds that a dying process may take: those of SIGTERM, and some more.
DYING = 15.0
# Seconds between two tries.
_EVERY = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class InUse(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: str, what: str) -> Iterator[None]:
    """Holds the lock that is a file, in a folder that is there; the file is gone afterwards.

    Where the file system has no locks, or the folder can't be written, the block runs without.

    Args:
        path: of the file.
        what: it is a lock of, for the message.

    Raises:
        InUse: another process holds it and doesn't give it up within seconds; names that process.
        OSError: the file can't be made.
    """
    descriptor = None if fcntl is None else _acquire(path, what, time.monotonic() + DYING)
    if descriptor is None:
        yield
        return
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that it is not the file any more.
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
