"""Checksums of a folder's files, to detect damage."""

import hashlib
import json
import os
from pathlib import Path

FILE = "checksums.json"


def write_checksums(folder: Path, *, without: frozenset[str] = frozenset()) -> None:
    """Flushes the files of a folder to disk, and writes their checksums into the folder.

    Args:
        folder: the folder; its files, also those in subfolders, must be complete.
        without: names of files directly in the folder to leave out, as they may still change.

    Raises:
        OSError: a file can't be read, or the checksums can't be written.
    """
    digests = {
        name: _digest(folder / name, sync=True) for name in _names(folder) if name not in without
    }
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def has_checksums(folder: Path) -> bool:
    """Whether the folder has checksums."""
    return (folder / FILE).exists()


def damage(folder: Path) -> str | None:
    """Describes the first file that differs from its checksum; returns None if all match.

    Raises:
        OSError: an existing file can't be read, which doesn't mean that it is damaged.
    """
    try:
        digests = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if not isinstance(digests, dict):
            raise ValueError
    except ValueError:
        return f"{FILE} can't be read"
    for name, digest in digests.items():
        try:
            if _digest(folder / name) != digest:
                return f"{name} has other bytes than were written"
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return f"{name} is missing"
    return None


def _names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest
