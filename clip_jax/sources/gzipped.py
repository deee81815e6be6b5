"""Tar files that are gzipped, unpacked into TMPDIR, since nothing in them can be read by itself."""

import gzip
import os
import tempfile
import zlib
from typing import IO

from clip_jax.errors import exhausted

MAGIC = b"\x1f\x8b"
# Pictures are compressed already: what unpacks to more times its size, and to more bytes than
# this, was made to fill the disk.
MOST_TIMES, MOST_BYTES = 100, 1 << 32
_PIECE = 1 << 20


def unpacked(descriptor: int) -> tuple[int, str]:
    """Unpacks a file into a temporary one, which the system removes once it is closed.

    Args:
        descriptor: of the gzipped file.

    Returns:
        The descriptor of the unpacked file, and what is wrong with the rest if it could not be
        unpacked to its end; an empty string if it could.

    Raises:
        Exhausted: the disk is full; the message says what to do.
        OSError: the file can't be read.
    """
    size = os.fstat(descriptor).st_size
    most = max(MOST_TIMES * size, MOST_BYTES)
    try:
        with (
            open(descriptor, "rb", closefd=False) as file,
            tempfile.TemporaryFile(prefix="clip-jax-") as target,
        ):
            file.seek(0)
            problem = _unpack(gzip.GzipFile(fileobj=file), target, most)
            target.flush()
            return os.dup(target.fileno()), problem
    except OSError as error:
        raise exhausted(error) or error from error


def beginning(head: bytes) -> bytes:
    """Unpacks the first bytes of a gzipped file, as far as they go.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head)
    except zlib.error as error:
        raise ValueError(f"its gzip data is damaged: {error}") from None


def _unpack(packed: gzip.GzipFile, target: IO[bytes], most: int) -> str:
    done = 0
    while True:
        try:
            data = packed.read1(_PIECE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return f"its gzip data is damaged or cut off, after {done:,} bytes of tar: {error}"
        if not data:
            return ""
        done += len(data)
        if done > most:
            return (
                f"it unpacks to more than {most:,} bytes, {MOST_TIMES} times its size: unpack it "
                "to a plain tar file yourself if that is right"
            )
        target.write(data)
