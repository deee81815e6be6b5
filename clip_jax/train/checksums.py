"""Checksums of a folder's files, by which damage is told from what was written."""

import hashlib
import json
import os
from pathlib import Path

FILE = "checksums.json"


def write_checksums(folder: Path, *, without: frozenset[str] = frozenset()) -> None:
    """Makes the files of a folder outlast a power cut, and puts their checksums beside them.

    Args:
        folder: whose files are complete, with those of the folders in it.
        without: names of files right in the folder that may still change.

    Raises:
        OSError: they can't be read, or the checksums can't be written.
    """
    digests = {
        name: _digest(folder / name, sync=True) for name in _names(folder) if name not in without
    }
    with (folder / FILE).open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def has_checksums(folder: Path) -> bool:
    """Whether there are checksums to compare with."""
    return (folder / FILE).exists()


def damage(folder: Path) -> str | None:
    """What is wrong with the first file that isn't what its checksum says; None if all are.

    Raises:
        OSError: a file that is there can't be read, which is no damage to it.
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
