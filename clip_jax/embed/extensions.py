"""What extends a job in an output folder: notes of which files or pictures were new, and when.

`job.json` stays as it was. Each extension is a file beside it that names the one before by its
fingerprint, and what was new lies in `inputs/`, as does what there was at first.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from clip_jax.storage import storage

EXTENSION, INPUTS = "extension-{:06d}.json", "inputs"


class Entry(NamedTuple):
    """A picture of a folder, or a file of rows.

    Attributes:
        name: its name; a picture's is relative to the folder.
        version: the fingerprint of the file; empty for a picture.
        begin: the first of its rows that is new, where an extension embeds a file's new rows.
    """

    name: str
    version: str = ""
    begin: int = 0


Listing = Sequence[Entry]


def extension(
    extends: str, source: str, listing: Listing, first: int, shards: int
) -> dict[str, Any]:
    """Returns the note of an extension.

    Args:
        extends: the fingerprint of the job as it was before.
        source: the fingerprint of the whole input.
        listing: what is new.
        first: the index of its first shard.
        shards: how many shards the job has now.
    """
    note = {
        "extends": extends,
        "input": source,
        "listing": _digest(listing),
        "first": first,
        "shards": shards,
    }
    text = json.dumps(note, sort_keys=True)
    return {"fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16], **note}


def read_extensions(out: str, fingerprint: str) -> list[dict[str, Any]]:
    """Reads the extensions of a job, in order.

    Args:
        out: the folder.
        fingerprint: the fingerprint of the job before the first of them.

    Raises:
        ValueError: one is damaged, or is another job's.
        OSError: one can't be read.
    """
    found: list[dict[str, Any]] = []
    while True:
        path = f"{out}/{EXTENSION.format(len(found) + 1)}"
        try:
            note = json.loads(storage(out).read(path))
        except FileNotFoundError:
            return found
        except (ValueError, RecursionError):
            note = None
        before = found[-1]["fingerprint"] if found else fingerprint
        if not isinstance(note, dict) or not all(
            name in note and fits(note[name]) for name, fits in _FIELDS.items()
        ):
            raise ValueError(f"{path} is damaged: remove it, and start the same command again")
        if note["extends"] != before:
            raise ValueError(f"{path} extends another job, {note['extends']}: remove it")
        found.append(note)


def write_extension(out: str, number: int, note: Mapping[str, Any]) -> None:
    """Writes the note of an extension, unless it exists.

    Raises:
        OSError: it can't be written.
    """
    data = json.dumps(note, indent=1).encode() + b"\n"
    storage(out).create(f"{out}/{EXTENSION.format(number)}", data)


def read_listing(out: str, digest: str) -> Listing | None:
    """Reads what an input had at a time, by its fingerprint, or an extension by its digest.

    Returns:
        It; None if there is none or it is damaged.

    Raises:
        OSError: it can't be read.
    """
    try:
        found = json.loads(gzip.decompress(storage(out).read(_path(out, digest))))
        return [Entry(*entry) for entry in found]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
            raise
        return None


def write_listing(out: str, listing: Listing, digest: str | None = None) -> None:
    """Writes what an input has, unless it is there.

    Args:
        out: the folder.
        listing: the entries.
        digest: the input's fingerprint; by default the entries' digest.

    Raises:
        OSError: it can't be written.
    """
    digest = digest or _digest(listing)
    if read_listing(out, digest) is None:
        data = gzip.compress(json.dumps(listing).encode(), mtime=0)
        storage(out).write(_path(out, digest), data)


def _path(out: str, digest: str) -> str:
    return f"{out}/{INPUTS}/{digest[:16]}.json.gz"


def _digest(listing: Listing) -> str:
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "fingerprint": _is_text,
    "extends": _is_text,
    "input": _is_text,
    "listing": _is_text,
    "first": _is_count,
    "shards": _is_count,
}
