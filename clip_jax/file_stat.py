"""What tells a file from what it was before, without reading it."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

# What stores tell one version of a file from the next by; the first that there is.
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "Content-MD5", "mtime")
VERSIONS += ("LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")
# Spreads numbers over 64 bits: the fractional part of the golden ratio.
MULTIPLIER = 0x9E3779B97F4A7C15


class Stat(NamedTuple):
    """What tells a file from what it was before, without reading it.

    Attributes:
        size: bytes.
        version: its modification time in nanoseconds; on stores its ETag or the like, None where
            they have nothing of the kind.
        changed: on disks the time of its last change of any kind, in nanoseconds: a file that was
            put in its place may have an old modification time.
    """

    size: int
    version: str | None
    changed: int = 0

    @property
    def stamp(self) -> str | None:
        """All of it; None where that doesn't tell one version from the next."""
        return None if self.version is None else f"{self.size} {self.version} {self.changed}"


def of_disk(found: os.stat_result) -> Stat:
    """What a disk says of a file."""
    return Stat(found.st_size, str(found.st_mtime_ns), found.st_ctime_ns)


def of_store(info: Mapping[str, Any]) -> Stat:
    """What a store says of a file, as fsspec gives it."""
    found = next((str(info[name]) for name in VERSIONS if info.get(name)), None)
    return Stat(int(info["size"]), found and found.strip('"'))


def number_of_disk(found: os.stat_result) -> int:
    """64 bits of what a disk says of a file: there may be millions of files."""
    number = (found.st_size * MULTIPLIER + found.st_mtime_ns) * MULTIPLIER + found.st_ctime_ns
    return number & 0xFFFFFFFFFFFFFFFF


def number_of_store(info: Mapping[str, Any]) -> int:
    """64 bits of what a store says of a file; 0 where that tells no version from the next."""
    if info.get("size") is None or (stamp := of_store(info).stamp) is None:
        return 0
    return int.from_bytes(hashlib.blake2b(stamp.encode(), digest_size=8).digest(), "little")
