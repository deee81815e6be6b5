"""The size and version of a file, by which a change is noticed without reading it."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from clip_jax.errors import Refused

# Fields in which stores give a file's version; the first one present is used.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "mtime")
VERSIONS += (
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "created",
    "blob_id",
)
# Spreads numbers over 64 bits (hashing): the fractional part of the golden ratio.
MULTIPLIER = 0x9E3779B97F4A7C15


class Stat(NamedTuple):
    """The size and version of a file.

    Attributes:
        size: its size in bytes.
        version: its modification time in nanoseconds; on stores its ETag or the like, None if
            they have nothing of the kind.
        changed: on disks its ctime in nanoseconds, because a file that replaces it may have an
            old modification time.
    """

    size: int
    version: str | None
    changed: int = 0

    @property
    def stamp(self) -> str | None:
        """All three as text; None if the version is unknown."""
        return None if self.version is None else f"{self.size} {self.version} {self.changed}"


def of_disk(found: os.stat_result) -> Stat:
    """Returns the size and version of a local file."""
    return Stat(found.st_size, str(found.st_mtime_ns), found.st_ctime_ns)


def of_store(info: Mapping[str, Any]) -> Stat:
    """Returns the size and version of a remote file, from fsspec's info."""
    found = next((str(info[name]) for name in VERSIONS if info.get(name)), None)
    if info.get("size") is None:
        raise Refused("the server does not say how long the file is: download it first")
    return Stat(int(info["size"]), found and found.strip('"'))


def number_of_disk(found: os.stat_result) -> int:
    """Hashes a local file's size and version to 64 bits, as there may be millions of files."""
    number = (found.st_size * MULTIPLIER + found.st_mtime_ns) * MULTIPLIER + found.st_ctime_ns
    return number & 0xFFFFFFFFFFFFFFFF


def number_of_store(info: Mapping[str, Any]) -> int:
    """Hashes a remote file's size and version to 64 bits; 0 if the version is unknown."""
    if info.get("size") is None or (stamp := of_store(info).stamp) is None:
        return 0
    return int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), "little")
