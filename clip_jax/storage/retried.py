"""A remote file of which each read is tried three times, for readers that know no retries."""

import io
import os
from typing import Any

from clip_jax.attempts import tried


class RetriedFile(io.RawIOBase):
    """An open file of fsspec; reads that fail for a moment are tried again."""

    def __init__(self, path: str, file: Any):
        """Wraps a file.

        Args:
            path: its address, for messages.
            file: the file, opened for reading.
        """
        self._path, self._file, self._place = path, file, 0

    def read(self, size: int = -1) -> bytes:
        place = self._place
        left = max(self._file.size - place, 0)
        size = left if size < 0 else min(size, left)

        def act() -> bytes:
            self._file.seek(place)
            data = self._file.read(size)
            if len(data) < size:
                raise ConnectionError(f"{len(data):,} bytes came of {size:,} at byte {place:,}")
            return data

        data = tried(self._path, act) if size else b""
        self._place += len(data)
        return data

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = base + place
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
