"""Names of unfinished files, which say who writes them: what a dead process has left is known."""

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

# What the name of an unfinished file ends in.
ASIDE = ".aside"
# Seconds after which what nobody is known to write is nobody's: other hosts' clocks may be off.
LONG_AGO = 24 * 3600.0

_counter = itertools.count()


def aside(path: str | os.PathLike[str]) -> str:
    """A name beside a file's own, under which this process alone writes it; hidden."""
    folder, name = os.path.split(os.fspath(path))
    owner = f"{_host()}-{os.getpid()}-{_life(os.getpid())}-{next(_counter)}"
    return os.path.join(folder, f".{name}.{owner}{ASIDE}")


def is_abandoned(path: str | os.PathLike[str]) -> bool:
    """Whether nobody writes that unfinished file any more.

    Its process, which was of this host, is gone; or it is of another host, or of an older version,
    and has not been touched for a day.
    """
    path = os.fspath(path)
    found = re.search(rf"\.([0-9a-f]+)-(\d+)-([0-9a-f]+)-\d+{re.escape(ASIDE)}$", path)
    if found and found[1] == _host():
        pid = int(found[2])
        if pid == os.getpid():  # may have been another's before, as in a container
            return found[3] != _life(pid)
        return not _is_alive(pid)
    try:
        return time.time() - os.stat(path).st_mtime > LONG_AGO
    except OSError:
        return False


@contextlib.contextmanager
def written_aside(path: str, write: Callable[[BinaryIO], object]) -> Iterator[str]:
    """A whole file under another name, to be given its own; what is left of that is removed.

    Args:
        path: the name that it is to have.
        write: writes all of it.

    Yields:
        The name that it has for the time being.

    Raises:
        OSError: it can't be written; names the path that it was to have.
    """
    folder, unfinished = os.path.dirname(path) or ".", aside(path)
    try:
        os.makedirs(folder, exist_ok=True)
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield unfinished
    except OSError as error:  # a full disk's own message doesn't say which
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)


def put_new(unfinished: str, path: str) -> bool:
    """Gives a file its name, unless another has it, which a rename would replace.

    Returns:
        Whether it has the name now.

    Raises:
        OSError: it can't have it.
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
    """Where process ids are what they are here: the same machine, boot and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def _life(pid: int) -> str:
    """Tells this process from others that have had its id."""
    return uuid.uuid4().hex[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True
