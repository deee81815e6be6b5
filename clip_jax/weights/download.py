"""Downloads a file: resumed after an interruption, verified, and by one process at a time."""

import contextlib
import errno
import hashlib
import http.client
import math
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from clip_jax.errors import DownloadError, is_exhausted
from clip_jax.locks import locked

ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt; each later pause is one second longer
TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Failed(Exception):
    """A download can't succeed."""


class _Cut(_Failed):
    """A download stopped early; trying again may help."""


def fetch(url: str, sha256: str, path: Path, progress: bool = True) -> None:
    """Downloads the file at `url` to `path`, unless it is there already.

    The data is written to `<path>.part`, which a later call resumes, and renamed only when it is
    complete and its checksum is right. If several processes call it, one downloads and the others
    wait.

    Args:
        url: the address.
        sha256: the file's checksum, in hexadecimal.
        path: the destination. An existing file with the checksum is kept; one with another
            checksum is replaced.
        progress: whether to show a progress bar on standard error.

    Raises:
        DownloadError: no connection, no such page, wrong contents, no space or no permission; the
            message says how to put the file there by hand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made_once(path):
            if not has_checksum(path, sha256):
                _download(url, sha256, path, progress)
    except _Failed as error:
        reason = str(error)
    except OSError as error:
        where = error.filename or path.parent
        reason = (
            f"{error.strerror or error} ({where}); another folder can be chosen with "
            f"download_root= or the environment variable CLIP_JAX_CACHE"
        )
    else:
        return
    raise DownloadError(
        f"{path.name} could not be downloaded: {reason}. By hand: fetch {url} and save it as {path}"
    )


def has_checksum(path: Path, sha256: str) -> bool:
    """Whether `path` is a readable file with this SHA-256.

    Raises:
        OSError: it exists but can't be read for a moment, which is no reason to replace it.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return False


def made_once(path: Path) -> contextlib.AbstractContextManager[None]:
    """Locks `path` against other processes during the block; waits for one that has the lock.

    The system releases the lock when its process dies, so it is never stale.

    Raises:
        OSError: the lock file can't be created.
    """

    def say() -> None:
        print(f"waiting for another process that is making {path} ...", file=sys.stderr, flush=True)

    return locked(f"{path}.lock", str(path), timeout=math.inf, on_wait=say)


def _download(url: str, sha256: str, path: Path, progress: bool) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _complete(url, sha256, part, path.name if progress else None)
                break
            except _Cut:
                if attempt == ATTEMPTS:
                    raise
                time.sleep(PAUSE * attempt)
        os.replace(part, path)
    except OSError as error:
        # Without memory or descriptors the part is still good; on a full disk it must go.
        if error.errno in _FULL or not is_exhausted(error):
            _remove(part)
        raise
    except BaseException:
        if part.exists() and not part.stat().st_size:
            _remove(part)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _complete(url: str, sha256: str, part: Path, label: str | None) -> None:
    """Downloads the rest of `part`; returns when it is complete and its checksum is right."""
    with open(part, "a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        start = file.tell()
        if digest.hexdigest() == sha256:  # an earlier process was killed just before the rename
            return
        with _open(url, start) as response:
            if start and not _continues(response, start):
                start, digest = 0, hashlib.sha256()
                file.truncate(0)
            length = _length(response)
            total = None if length is None else start + length
            if total and shutil.disk_usage(part.parent).free < total - start:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part.parent))
            with tqdm(
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=label,
                disable=label is None,
            ) as bar:
                for block in _blocks(response):
                    digest.update(block)
                    file.write(block)
                    bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
        received = file.tell()
    if total is not None and received < total:
        raise _Cut(f"the connection was cut after {received:,} of {total:,} bytes")
    if digest.hexdigest() != sha256:
        part.unlink()
        # The beginning may come from another version of the file: then a fresh start helps.
        kind = _Cut if start else _Failed
        raise kind(
            f"its SHA-256 should be {sha256}. Got {digest.hexdigest()} from the server's "
            f"{received:,} bytes"
        )


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Requests all bytes from `start` on, and returns the server's response."""
    headers = {"User-Agent": "clip-jax"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return _open(url, 0)  # `start` is beyond the end: our part is of another file
        busy = error.code >= 500 or error.code == http.HTTPStatus.TOO_MANY_REQUESTS
        kind = _Cut if busy else _Failed
        raise kind(f"the server answered {error.code} {error.reason}") from None
    # urllib raises bare ValueErrors for malformed addresses: a proxy's, or of a redirect.
    except (OSError, ValueError, http.client.HTTPException) as error:
        if is_exhausted(error):
            raise
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _Failed(f"no connection to the server ({reason})") from None
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise _Failed("the server answered with a web page instead of the file")
    return response


def _length(response: http.client.HTTPResponse) -> int | None:
    """Returns the number of bytes to come, if the server gives a valid one."""
    text = response.headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    """Whether the response begins at `start`; a server may ignore the requested range."""
    span = response.headers.get("Content-Range", "")
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and span.startswith(f"bytes {start}-")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, ValueError, http.client.HTTPException) as error:
            # Only errors of the connection are retried, not the disk's OSErrors.
            raise _Cut(f"the connection was cut ({error})") from None
        if not block:
            return
        yield block
