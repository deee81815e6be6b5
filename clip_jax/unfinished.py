"""Names of unfinished files, which contain their process, so that abandoned ones can be found."""

import contextlib
import functools
import hashlib
import itertools
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

# The suffix of unfinished files.
ASIDE = ".aside"
# Seconds after which another host's file counts as abandoned; ample, as clocks may be off.
LONG_AGO = 24 * 3600.0

_counter = itertools.count()


def aside(path: str | os.PathLike[str]) -> str:
    """Returns a hidden path in a file's folder that only this process writes to."""
    folder, name = os.path.split(os.fspath(path))
    owner = f"{_host()}-{os.getpid()}-{_life(os.getpid())}-{next(_counter)}"
    return os.path.join(folder, f".{name}.{owner}{ASIDE}")


def is_abandoned(path: str | os.PathLike[str]) -> bool:
    """Whether no process writes that unfinished file any more.

    Either its process was on this host and is gone; or the file comes from another host or an
    older version, and has not been modified for a day.
    """
    path = os.fspath(path)
    found = re.search(rf"\.([0-9a-f]+)-(\d+)-([0-9a-f]+)-\d+{re.escape(ASIDE)}$", path)
    if found and found[1] == _host():
        pid = int(found[2])
        if pid == os.getpid():  # ids are reused, as in containers
            return found[3] != _life(pid)
        return not _is_alive(pid)
    try:
        return time.time() - os.stat(path).st_mtime > LONG_AGO
    except OSError:
        return False


@contextlib.contextmanager
def written_aside(path: str, write: Callable[[BinaryIO], object]) -> Iterator[str]:
    """Writes a file under a temporary name; removes that name after the block.

    Args:
        path: the final path.
        write: writes the content.

    Yields:
        The temporary path of the complete file, for the block to rename or link.

    Raises:
        OSError: the file can't be written; the error names the final path.
    """
    folder, unfinished = os.path.dirname(path) or ".", aside(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    except OSError as error:  # a full disk's error names no file
        raise OSError(error.errno, error.strerror or str(error), path) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)


def put_new(unfinished: str, path: str) -> bool:
    """Publishes a complete file under its final name, unless that name is taken.

    Returns:
        Whether it was published.

    Raises:
        OSError: it can't be linked or renamed.
    """
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        os.replace(unfinished, path)
    return True


@functools.cache
def _host() -> str:
    """Identifies the namespace of this process's id: the machine, boot and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _life(pid: int) -> str:
    """Distinguishes this process from others that have had its id."""
    return uuid.uuid4().hex[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
