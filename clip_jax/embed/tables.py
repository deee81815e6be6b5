"""The tables of parts in an output folder, found by their names, whichever job wrote them."""

import re
from collections.abc import Sequence

from clip_jax.embed.footer import footer_length, read_footer
from clip_jax.embed.identity import JOB
from clip_jax.errors import is_exhausted
from clip_jax.storage import Unreachable, storage

# Bytes at a file's end that hold the footer of most parts.
FOOTER = 1 << 16


def chunks_with(out: str, table: str) -> set[str]:
    """Returns the names of the chunks that have a table in a folder, valid or not.

    Args:
        out: the folder.
        table: the pattern of the tables' names.

    Raises:
        OSError: the folder can't be read.
    """
    folder, _, pattern = f"{out}/{table}".rpartition("/")
    head, _, tail = pattern.partition("{}")
    ours = re.compile(rf"{re.escape(head)}(\d{{6,}}-\d{{6,}}){re.escape(tail)}")
    found = map(ours.fullmatch, storage(out).names(folder))  # not copies such as "x (1)"
    return {match[1] for match in found if match}


def end_of(path: str) -> bytes:
    """Reads the end of a Parquet file, with its footer.

    Raises:
        OSError: it can't be read.
    """
    where = storage(path)
    size = where.size(path)
    tail = where.read_range(path, max(size - FOOTER, 0), size)
    length = footer_length(tail)
    if len(tail) < length <= size:
        tail = where.read_range(path, size - length, size)
    return tail


def check_unclaimed(out: str, fingerprint: str, tables: Sequence[str]) -> None:
    """Raises an error if a folder without `job.json` holds parts of another job.

    Args:
        out: the folder.
        fingerprint: this job's.
        tables: the patterns of the tables' names, of each format: the other job may have another.

    Raises:
        ValueError: it does; the message gives both fingerprints.
        OSError: the parts can't be read.
    """
    for table in tables:
        for name in sorted(chunks_with(out, table)):
            try:
                found = read_footer(end_of(f"{out}/{table.format(name)}"))
            except OSError as error:
                if isinstance(error, Unreachable) or is_exhausted(error):
                    raise
                continue
            if found is None:
                continue  # damaged, so it belongs to no job
            if found.fingerprint == fingerprint:
                break
            raise ValueError(
                f"{out} holds parts of another job, {found.fingerprint}, and no {JOB}; this one is "
                f"{fingerprint}. Give another folder, or the same input, model and options; or "
                "remove the parts."
            )
