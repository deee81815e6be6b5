"""Reads `flax_model.msgpack`: the arrays of Flax models of transformers 4, memory-mapped.

The file is one MessagePack map, nested by the names of modules. An array is an extension of type 1
(a scalar, of type 3) that holds (shape, name of the dtype, bytes) in MessagePack again. Nothing
else occurs, so nothing else is read: no library, because those copy all of the bytes, whereas an
array here is a view of the map, and only the pages that are used later are read.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.convert.archive import shown
from clip_jax.convert.checks import (
    DAMAGED,
    MAX_NAME_LENGTH,
    Unread,
    check_count,
    check_name,
    empty,
    numbers,
    raise_all,
)
from clip_jax.convert.pickled import MAX_DIMENSIONS
from clip_jax.errors import CheckpointError

_DTYPES = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
_ARRAY, _SCALAR = 1, 3  # Flax's types of extension
_CHUNKED = "__msgpack_chunked_array__"  # marks an array of more than a gigabyte
_MAX_DEPTH = 64
_LONGEST_DTYPE = 32

# The last part of a Flax path, and PyTorch's.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# The axes of a kernel that PyTorch's has in its place, by the number of axes.
_KERNEL_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}


def is_msgpack(start: bytes) -> bool:
    """Whether a file that begins so is a MessagePack map with a string for its first key."""
    skipped = {0xDE: 3, 0xDF: 5}.get(start[0], 1) if start else 1
    is_map = start[:1] in (b"\xde", b"\xdf") or 0x81 <= (start or b"\0")[0] <= 0x8F
    key = start[skipped : skipped + 1]
    # The size of a safetensors header may have any bytes, but its header follows.
    return is_map and bool(key) and _is_string(key[0]) and start[8:9] != b"{"


def pytorch_name(path: tuple[str, ...]) -> str:
    """Returns the name that transformers' PyTorch classes have for an array of its Flax classes.

    Example:
        >>> pytorch_name(("text_model", "encoder", "layers", "0", "mlp", "fc1", "kernel"))
        'text_model.encoder.layers.0.mlp.fc1.weight'
    """
    return ".".join((*path[:-1], _LEAVES.get(path[-1], path[-1])))


def read_msgpack(data: np.memmap) -> dict[str, np.ndarray]:
    """Returns views of the arrays in a mapped file, by PyTorch's names and in its layout.

    Raises:
        CheckpointError: the file is faulty; the caller must add its path to the message.
    """
    reader = _Reader(data)
    reader.read_map((), reader.map_size())
    if reader.position != len(data):
        raise CheckpointError(
            f"has {len(data) - reader.position:,} bytes after its end, expected none: {DAMAGED}"
        )
    remedy = "load the file in Flax, turn such entries into plain arrays and save it again"
    raise_all(reader.problems, "arrays as Flax writes them", reader.unread, remedy)
    if not reader.arrays:
        raise CheckpointError("holds no arrays, expected a model's weights: check the file")
    return reader.arrays


class _Reader:
    """A position in a MessagePack file, and what was found before it.

    Only the tree is read here, so a damaged byte can't cost more than the file has bytes.
    """

    def __init__(self, data: np.memmap):
        self.arrays: dict[str, np.ndarray] = {}
        self.problems: list[str] = []
        self.unread: list[str] = []
        self.position = 0
        self._data, self._bytes, self._count = data, data.data, 0

    def map_size(self) -> int:
        """Takes the head of a map."""
        head = self._number(1)
        if 0x80 <= head <= 0x8F:
            return head & 0x0F
        if head in (0xDE, 0xDF):
            return self._number(2 if head == 0xDE else 4)
        raise self._damage(f"begins with {_kind(head)}, expected a map")

    def read_map(self, path: tuple[str, ...], size: int) -> None:
        if len(path) > _MAX_DEPTH:
            raise CheckpointError(
                f"nests maps more than {_MAX_DEPTH} deep, expected a tree of modules: the file was "
                f"tampered with, get it from its source again"
            )
        keys: set[str] = set()
        for _ in range(size):
            self._count += 1
            check_count(self._count)  # a map may say that it has four billion entries
            key = self._string(MAX_NAME_LENGTH)
            if key in keys:
                raise self._damage(f"has {shown(key)} twice in {shown('/'.join(path)) or 'a map'}")
            keys.add(key)
            if key == _CHUNKED:
                raise CheckpointError(
                    f"splits array {shown('/'.join(path))} into chunks, as Flax does above a "
                    f"gigabyte, expected whole arrays: load the file in Flax and save the model as "
                    f"safetensors"
                )
            self._value((*path, key))

    def _value(self, path: tuple[str, ...]) -> None:
        head = int(self._bytes[self._ahead(1)])
        if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
            self.read_map(path, self.map_size())
            return
        if (size := self._extension_size(head)) is None:
            # What follows can't be skipped without knowing its size, so the others stay unread.
            raise CheckpointError(
                f"holds {_kind(head)} in {shown('/'.join(path))}, expected arrays by the names of "
                f"modules only: check that it is a flax_model.msgpack of a whole model"
            )
        kind = self._number(1)
        end = self._ahead(size) + size
        name = "/".join(path)
        try:
            if len(name) > MAX_NAME_LENGTH:
                raise ValueError("is no name for an array")
            check_name(name)
            if kind not in (_ARRAY, _SCALAR):
                raise Unread(f"is an extension of type {kind}, not an array")
            self._keep(path, self._array(end))
        except Unread as error:
            self.unread.append(f"{shown(name)} {error}")
        except ValueError as error:
            self.problems.append(f"{shown(name)} {error}")
        self.position = end

    def _keep(self, path: tuple[str, ...], array: np.ndarray) -> None:
        name = pytorch_name(path)
        if name in self.arrays:
            raise ValueError(f"is a second array for {name}")
        if path[-1] == "kernel":
            if array.ndim not in _KERNEL_AXES:
                raise ValueError(f"has shape {numbers(array.shape)}, expected 2 or 4 axes")
            array = array.transpose(_KERNEL_AXES[array.ndim])
        self.arrays[name] = array

    def _array(self, end: int) -> np.ndarray:
        """Reads (shape, dtype, bytes), which end at `end`; ValueError where they don't."""
        if self._within(end) != 0x93:
            raise ValueError("is not (shape, dtype, bytes)")
        count = self._within(end)
        if count & 0xF0 != 0x90 and count != 0xDC:
            raise ValueError("has no shape")
        count = self._within(end, 2) if count == 0xDC else count & 0x0F
        if count > MAX_DIMENSIONS:
            raise ValueError(f"has {count} dimensions")
        shape = tuple(self._size(end) for _ in range(count))
        size = self._string_size(self._within(end))
        if size is None or size > _LONGEST_DTYPE:
            raise ValueError("has no dtype")
        name = self._take(size, end).decode("ascii", "replace")
        if name not in _DTYPES:
            raise Unread(f"has dtype {shown(name)}, not one of {', '.join(_DTYPES)}")
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(self._within(end))
        if width is None:
            raise ValueError("has no bytes")
        size = self._within(end, width)
        dtype = _DTYPES[name]
        needed = math.prod(shape) * dtype.itemsize
        if size != end - self.position or size != needed:
            raise ValueError(
                f"has {name} of shape {numbers(shape)} ({needed:,} bytes) in {size:,} bytes, of "
                f"which there are {end - self.position:,}"
            )
        if 0 in shape:
            return empty(shape, dtype)
        return np.ndarray(shape, dtype, buffer=self._data, offset=self.position)

    def _size(self, end: int) -> int:
        head = self._within(end)
        if head <= 0x7F:
            return head
        width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(head)
        if width is None:
            raise ValueError("has a shape that is not of sizes")
        size = self._within(end, width)
        if size >= 2**63:
            raise ValueError("has a size over 64 bits")
        return size

    def _within(self, end: int, width: int = 1) -> int:
        return int.from_bytes(self._take(width, end), "big")

    def _take(self, size: int, end: int) -> bytes:
        if self.position + size > end:
            raise ValueError("ends before its array does")
        self.position += size
        return bytes(self._bytes[self.position - size : self.position])

    def _string(self, longest: int) -> str:
        size = self._string_size(head := self._number(1))
        if size is None:
            raise self._damage(f"has {_kind(head)} for a name at byte {self.position - 1:,}")
        if size > longest:
            raise self._damage(f"has a name of {size:,} bytes, expected at most {longest:,}")
        start = self._ahead(size)
        self.position += size
        try:
            return bytes(self._bytes[start : self.position]).decode()
        except UnicodeDecodeError:
            raise self._damage(f"has a name that is not UTF-8 at byte {start:,}") from None

    def _string_size(self, head: int) -> int | None:
        if 0xA0 <= head <= 0xBF:
            return head & 0x1F
        return self._number({0xD9: 1, 0xDA: 2, 0xDB: 4}[head]) if 0xD9 <= head <= 0xDB else None

    def _extension_size(self, head: int) -> int | None:
        """Takes the head of an extension; returns its size, or None if it is none."""
        if 0xC7 <= head <= 0xC9:
            self.position += 1
            return self._number({0xC7: 1, 0xC8: 2, 0xC9: 4}[head])
        if 0xD4 <= head <= 0xD8:
            self.position += 1
            return 1 << (head - 0xD4)
        return None

    def _number(self, width: int) -> int:
        start = self._ahead(width)
        self.position += width
        return int.from_bytes(self._bytes[start : self.position], "big")

    def _ahead(self, size: int) -> int:
        if self.position + size > len(self._bytes):
            raise CheckpointError(
                f"ends at byte {len(self._bytes):,}, inside a value of {size:,} bytes that begins "
                f"at {self.position:,}: it was cut short, download or copy it again"
            )
        return self.position

    def _damage(self, what: str) -> CheckpointError:
        return CheckpointError(f"{what}: {DAMAGED}")


def _is_string(head: int) -> bool:
    return 0xA0 <= head <= 0xBF or 0xD9 <= head <= 0xDB


_KINDS: dict[str, Any] = {
    "a map": (0x80, 0x8F, 0xDE, 0xDF),
    "a list": (0x90, 0x9F, 0xDC, 0xDD),
    "a string": (0xA0, 0xBF, 0xD9, 0xDB),
    "nothing (nil)": (0xC0, 0xC0, 0xC0, 0xC0),
    "a boolean": (0xC2, 0xC3, 0xC2, 0xC3),
    "bytes": (0xC4, 0xC6, 0xC4, 0xC6),
    "an extension": (0xC7, 0xC9, 0xD4, 0xD8),
    "a number": (0xCA, 0xD3, 0x00, 0x7F),
    "a negative number": (0xE0, 0xFF, 0xE0, 0xFF),
}


def _kind(head: int) -> str:
    for name, (a, b, c, d) in _KINDS.items():
        if a <= head <= b or c <= head <= d:
            return name
    return f"byte {head:#04x}"
