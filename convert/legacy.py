"""The format of torch.save before PyTorch 1.6: pickles one after the other, then raw storages.

The pickles are a magic number, the version of the format, facts about the machine, the content
itself, and the keys of the storages. Then comes each storage by the order of the keys: the number
of its elements in eight bytes, and the elements. As in an archive, a storage is a range of bytes of
the mapped file, and nothing is executed.
"""

import io
from typing import Any

import numpy as np

from clip_jax.convert.archive import MAX_INDEX_BYTES, shown
from clip_jax.convert.checks import DAMAGED, check_count
from clip_jax.convert.pickled import Storage
from clip_jax.convert.unpickle import load
from clip_jax.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8
_CUT = "it was cut short, download or copy it again"


def is_legacy(start: bytes) -> bool:
    """Whether a file that begins so has this format: a pickle of its magic number."""
    return start[:1] == b"\x80" and _MAGIC.to_bytes(10, "little") in start[:32]


class LegacyFile:
    """The content of a file in this format, and where its storages lie.

    Attributes:
        root: the content, of plain values and the records of `pickled`.
        data: the mapped file.

    Raises:
        CheckpointError: it is damaged, or from a machine of another kind.
    """

    def __init__(self, data: np.memmap):
        self.data = data
        file = io.BytesIO(data[:MAX_INDEX_BYTES].tobytes())
        storages: dict[str, Storage] = {}
        magic, version, machine = (self._load(file, {}) for _ in range(3))
        if magic != _MAGIC or version != _VERSION or not isinstance(machine, dict):
            raise CheckpointError(
                f"has version {shown(str(version))} of the format of torch.save before 1.6, "
                f"expected {_VERSION}: {DAMAGED}"
            )
        if machine.get("little_endian") is not True:
            raise CheckpointError(
                "has its numbers in big-endian order, expected little-endian: load it in PyTorch "
                "on a little-endian machine (x86 or ARM) and torch.save it again there"
            )
        self.root: Any = self._load(file, storages)
        keys = self._load(file, {})
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise CheckpointError(f"has no list of its storages, expected their keys: {DAMAGED}")
        check_count(len(keys))
        self._spans = self._placed(keys, storages, file.tell())

    def span(self, storage: Storage) -> tuple[int, int]:
        """Returns (start, size) of a storage's bytes in the file; ValueError if it has none."""
        if storage.key not in self._spans:
            raise ValueError(f"needs storage {shown(storage.key)}, which is missing")
        return self._spans[storage.key]

    def _load(self, file: io.BytesIO, storages: dict[str, Storage]) -> Any:
        try:
            return load(file, storages)
        except CheckpointError:
            if file.tell() < min(len(self.data), MAX_INDEX_BYTES):
                raise
            if len(self.data) > MAX_INDEX_BYTES:
                raise CheckpointError(
                    f"has pickles of more than {MAX_INDEX_BYTES:,} bytes: this is no ordinary "
                    f"checkpoint, check that it is the right file"
                ) from None
            raise CheckpointError(
                f"ends inside of a pickle, expected five of them: {_CUT}"
            ) from None

    def _placed(
        self, keys: list[str], storages: dict[str, Storage], start: int
    ) -> dict[str, tuple[int, int]]:
        """Returns (start, size) by key, of storages that follow each other to the file's end."""
        spans: dict[str, tuple[int, int]] = {}
        for key in keys:
            if key not in storages or key in spans:
                fault = "twice" if key in spans else "without its dtype"
                raise CheckpointError(f"has storage {shown(key)} {fault}, expected once: {DAMAGED}")
            head = self.data[start : start + _COUNT_BYTES].tobytes()
            count, dtype = int.from_bytes(head, "little"), storages[key].dtype
            start += _COUNT_BYTES
            size = count * dtype.itemsize
            if start + size > len(self.data):
                raise CheckpointError(
                    f"has {len(self.data):,} bytes, expected at least {start + size:,} for storage "
                    f"{shown(key)} of {count:,} {dtype} elements: {_CUT}"
                )
            spans[key] = (start, size)
            start += size
        if start != len(self.data):
            raise CheckpointError(
                f"has {len(self.data) - start:,} bytes after its last storage, expected none: "
                f"{DAMAGED}"
            )
        return spans
