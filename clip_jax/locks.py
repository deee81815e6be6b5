"""File locks that are released when their process ends, however it dies.

They are those of the library filelock, for all systems. In addition, the lock file names its
holder and is removed after use.
"""

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

# Seconds to wait for a process that is ending: SIGTERM's grace period, and some more.
DYING = 15.0
# Seconds between two tries.
_EVERY = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


class InUse(OSError):
    """Another process holds the lock."""


class _Removed(Exception):
    """The previous holder has removed the lock file that we have just locked."""


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    what: str,
    *,
    timeout: float | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Holds a lock file during the block, and removes it afterwards. Its folder must exist.

    If the file system has no locks, or the folder isn't writable, the block runs without a lock.

    Args:
        path: the path of the lock file.
        what: what is locked, for the message.
        timeout: seconds to wait for another process that holds it; by default `DYING`.
        on_wait: called once if there is such a process.

    Raises:
        InUse: another process still holds it after the timeout; the message names that process.
        OSError: the file can't be created.
    """
    held = _acquire(os.fspath(path), what, DYING if timeout is None else timeout, on_wait)
    if held is None:
        yield
        return
    try:
        yield
    finally:
        # Removed while held: a waiting process sees that its descriptor is not this file any more.
        with contextlib.suppress(OSError):
            os.unlink(path)
        held.release()


def _acquire(path: str, what: str, timeout: float, on_wait: Callable[[], None] | None):
    from filelock import FileLock, Timeout

    def claim(descriptor: int) -> None:
        if not _is_at(descriptor, path):
            raise _Removed
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())

    # On file systems without locks, filelock would fall back to files that survive a kill.
    lock = FileLock(
        path,
        thread_local=False,
        poll_interval=_EVERY,
        fallback_to_soft=False,
        on_acquired=claim,
    )
    deadline, is_waiting = time.monotonic() + timeout, False
    while True:
        try:
            lock.acquire(timeout=max(0.0, deadline - time.monotonic()) if is_waiting else 0)
            return lock
        except _Removed:
            continue
        except Timeout:
            if is_waiting:
                raise InUse(
                    f"another process{_holder(path)} is at work in {what}: wait until it has "
                    "ended, or end it; then start the same command again"
                ) from None
            is_waiting = True
            if on_wait is not None:
                on_wait()
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                return None
            if error.errno in _NO_LOCKS:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                return None
            raise OSError(error.errno, error.strerror, path) from None


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: str) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(300).decode(errors="replace")
    except OSError:
        return ""
    return f" ({text})" if text else ""
