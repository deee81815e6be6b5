"""Checkpoints built by hand, opcode by opcode: good ones without PyTorch, and bad ones."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGE_NAMES = {
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


class Raw(bytes):
    """Opcodes that leave one value on the stack."""


def encode(value: Any) -> Raw:
    """The opcodes that push a value."""
    match value:
        case Raw():
            return value
        case None:
            return Raw(b"N")
        case bool():
            return Raw(b"\x88" if value else b"\x89")
        case int() if -(2**31) <= value < 2**31:
            return Raw(b"J" + struct.pack("<i", value))
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return Raw(b"\x8a" + bytes([len(data)]) + data)
        case float():
            return Raw(b"G" + struct.pack(">d", value))
        case str():
            data = value.encode("utf-8", "surrogatepass")
            return Raw(b"X" + struct.pack("<I", len(data)) + data)
        case tuple():
            return Raw(b"(" + b"".join(map(encode, value)) + b"t")
        case list():
            return Raw(b"](" + b"".join(map(encode, value)) + b"e")
        case dict():
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return Raw(b"}(" + items + b"u")
    raise TypeError(type(value))


def glob(module: str, name: str) -> Raw:
    return Raw(b"c" + module.encode() + b"\n" + name.encode() + b"\n")


def call(module: str, name: str, *arguments: Any) -> Raw:
    return Raw(glob(module, name) + encode(arguments) + b"R")


def storage(kind: str, key: str, count: int) -> Raw:
    return Raw(encode(("storage", glob("torch", kind), key, "cpu", count)) + b"Q")


def tensor(kind: str, key: str, count: int, offset: Any, shape: Any, strides: Any) -> Raw:
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        storage(kind, key, count),
        offset,
        shape,
        strides,
        False,
        hooks,
    )


def record(name: str, attributes: dict[str, Any] | Raw) -> Raw:
    return Raw(glob("__torch__", name) + b")\x81" + encode(attributes) + b"b")


def program(value: Any) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


def zipped(entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def entries_of(pickle: bytes, storages: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [("x/data.pkl", pickle), *((f"x/data/{k}", data) for k, data in storages.items())]


def legacy(value: Any, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """A file as torch.save wrote it before PyTorch 1.6; storages are counts and bytes by key."""
    pickles = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}},
        value,
        list(storages),
    )
    tails = (struct.pack("<q", count) + data for count, data in storages.values())
    return b"".join(map(program, pickles)) + b"".join(tails)


def write(path: Path, value: Any, storages: dict[str, bytes] | None = None) -> Path:
    """A file whose pickle describes `value`; bytes that aren't `Raw` are a pickle themselves."""
    raw_pickle = isinstance(value, bytes) and not isinstance(value, Raw)
    path.write_bytes(zipped(entries_of(value if raw_pickle else program(value), storages or {})))
    return path


def parts(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Raw], dict[str, bytes]]:
    """Tensors by name and storages by key, as torch.save would have them."""
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(arrays.items()):
        strides = tuple(n // array.itemsize for n in np.empty_like(array, order="C").strides)
        kind = STORAGE_NAMES[str(array.dtype)]
        tensors[name] = tensor(kind, str(key), array.size, 0, array.shape, strides)
        storages[str(key)] = array.tobytes()
    return tensors, storages


FIVE = {"0": np.arange(5, dtype=np.float32).tobytes()}
W = tensor("FloatStorage", "0", 5, 0, (5,), (1,))
