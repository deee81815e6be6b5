"""Reads the JSON files beside weights, which come from strangers too: bounded in size and depth."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from clip_jax.convert.archive import shown
from clip_jax.convert.checks import LFS_BEGINNING, LFS_POINTER, naming
from clip_jax.errors import CheckpointError

# A configuration has a few kilobytes; old ones list the ids of generation.
MAX_CONFIG_BYTES = 1 << 20


def read_json(path: str | os.PathLike[str], most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: the file.
        most: the most bytes that it may have.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it can't be read, is too large, nests too deeply, repeats a name, or isn't
            a JSON object.
        OSError: there are too many open files.
    """
    path = Path(path)
    with naming(path):
        return _object(_content(path, most))


def _content(path: Path, most: int) -> bytes:
    status = os.stat(path)
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is no file, expected one of JSON: check the path")
    if status.st_size <= most:
        with open(path, "rb") as file:
            content = file.read(most + 1)
        if len(content) <= most:
            return content
    raise CheckpointError(
        f"has {status.st_size:,} bytes, expected at most {most:,} of JSON: check that it is the "
        f"right file"
    )


def _object(content: bytes) -> dict[str, Any]:
    if content.startswith(LFS_BEGINNING):
        raise CheckpointError(LFS_POINTER)
    if not content.strip():
        raise CheckpointError("is empty, expected JSON: the download or copy failed, repeat it")
    try:
        found = json.loads(content, object_pairs_hook=without_duplicates)
    except RecursionError:
        raise CheckpointError(
            "nests too deeply, expected a few levels of JSON: check that it is the right file"
        ) from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise CheckpointError(
            f"is not valid JSON ({shown(str(error))}), expected all of a JSON object: it was cut "
            f"or damaged, get it from its source again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"holds a JSON {type(found).__name__}, expected an object: get it from its source again"
        )
    return found


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dictionary of a JSON object, for `object_pairs_hook`; ValueError for a name twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"duplicate names, such as {shown(twice)}")
    return result
