"""Checkpoint files to arrays under their PyTorch names, without PyTorch and without copies."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from clip_jax.convert.archive import MAX_INDEX_BYTES, Archive, shown
from clip_jax.convert.unpickle import MAX_DIMENSIONS, Record, Tensor, load
from clip_jax.errors import CheckpointError

# Where training scripts keep the model's state dictionary in a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

# Expanded (stride 0) and shared tensors let a small file describe a huge model. A view of one costs
# nothing but whoever copies it pays in full, so what all views come to together must stay in
# proportion to the file. Tied weights double a file at most; the floor is for tiny files with an
# expanded mask.
_EXPANSION = 16
_EXPANSION_FLOOR = 64 << 20

# Modules shared by modules shared by modules: the number of paths grows exponentially.
_MAX_NAMES = 200_000
_MAX_NAME_LENGTH = 1_000
_MAX_DEPTH = 64

_MAX_SAFETENSORS_HEADER = 100_000_000  # the format's own limit: above it, it is another format
_SAFETENSORS_DTYPES = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before ZIP
_RESAVE = (
    "load it in PyTorch with weights_only=True and torch.save its state_dict() again with the "
    "current format"
)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a checkpoint, whatever kind of file it is, by its PyTorch name.

    TorchScript archives (the official `.pt` files), state dictionaries from `torch.save`, bare or
    nested in a training checkpoint, and `.safetensors` files are told apart by their content, not
    by their names. Nothing in a file is ever executed. Plain integers beside the arrays, such as
    `input_resolution` in some archives, come as 0-d arrays. A `module.` prefix is dropped where
    all names have it.

    Arrays are read-only views of the memory-mapped file: nothing is read from the disk before it
    is used, and the file must not be changed in place while they live.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it can't be read, or holds more than tensors; every bad tensor is listed.
    """
    path = Path(path)
    try:
        with _open(path) as file:
            data = np.memmap(file, dtype=np.uint8, mode="r")
            return _read(file, data)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "no such checkpoint, check the path or download it first", str(path)
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be read ({error.strerror or error}), expected a readable file: check "
            f"its permissions and the disk it lies on"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _open(path: Path) -> BinaryIO:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(
            "is a folder, expected a .pt or .safetensors file: give the file inside it, or give a "
            "folder written by clip_jax.save to clip_jax.load"
        )
    # Opening a pipe would wait for a writer, and none can be mapped.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is a device or a pipe, expected a file: copy it to a disk first")
    if status.st_size == 0:
        raise CheckpointError(
            "is empty (0 bytes), expected a checkpoint: the download or copy failed, repeat it"
        )
    return open(path, "rb")


def _read(file: BinaryIO, data: np.memmap) -> dict[str, np.ndarray]:
    start = data[:512].tobytes()
    if start.startswith(b"PK\x03\x04"):
        return _read_archive(Archive(file, data))
    # A safetensors file has no magic: 8 bytes of header length, then JSON.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_SAFETENSORS_HEADER:
        return read_safetensors(data)
    raise CheckpointError(_diagnosis(start))


def _diagnosis(start: bytes) -> str:
    """What a file that is no checkpoint is instead, and what to do about it."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_LEGACY_TORCH):
        return f"was written by an old torch.save (before 1.6), expected its ZIP format: {_RESAVE}"
    if start[257:262] == b"ustar":
        return (
            "is a tar archive, expected a ZIP archive (.pt) or safetensors: unpack it if the "
            "checkpoint is inside; if a torch.save of 2016 wrote it, torch.load it and save again"
        )
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return f"is a bare pickle, expected the ZIP format of torch.save: {_RESAVE}"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return (
            "looks like HTML or XML, expected a checkpoint: a server answered with a page instead "
            "of the file, check the address and download it again"
        )
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, expected the checkpoint it stands for: run `git lfs pull`"
    return (
        f"begins with {start[:8]!r}, expected a ZIP archive (.pt) or safetensors: it is damaged or "
        f"another kind of file, check it or get it from its source again"
    )


# ---- .pt ----------------------------------------------------------------------------------------


def _read_archive(archive: Archive) -> dict[str, np.ndarray]:
    root = load(archive.read("data.pkl", MAX_INDEX_BYTES))
    if isinstance(root, Record):
        found = dict(_module_values("", root, [0]))
    elif isinstance(root, dict):
        found = _state_values(root)
    else:
        raise CheckpointError(
            f"holds a {type(root).__name__}, expected a module or a dictionary of tensors: "
            f"torch.save the model's state_dict()"
        )
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            "holds no tensors, expected a model's weights: save the model itself (not a frozen "
            "TorchScript module, whose weights are constants of its code)"
        )
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    budget = _EXPANSION * len(archive.data) + _EXPANSION_FLOOR
    for name, value in found.items():
        try:
            _check_name(name)
            if isinstance(value, Tensor):
                _check_window(value)
                budget -= math.prod(value.shape) * value.storage.dtype.itemsize
                if budget < 0:
                    raise ValueError(
                        f"of shape {_numbers(value.shape)} brings the arrays to more than "
                        f"{_EXPANSION} times the file's size"
                    )
                arrays[name] = _tensor_view(archive, value)
            else:
                arrays[name] = _scalar(value)
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
    _raise_all(problems, "tensors that lie within their storages")
    return arrays


def _module_values(
    prefix: str, record: Record, count: list[int], depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Tensors of a module and its children by path, and the root's plain integers.

    Deeper integers are settings of the layers, as are lists and strings anywhere: they are no part
    of PyTorch's own state_dict().
    """
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"nests modules more than {_MAX_DEPTH} deep at {shown(prefix)}, expected a tree of "
            f"modules: the file was tampered with, get it from its source again"
        )
    for name, value in (record.state or {}).items():
        count[0] += 1
        if count[0] > _MAX_NAMES:
            raise CheckpointError(
                f"names more than {_MAX_NAMES:,} attributes, expected a model's few thousand: the "
                f"file was tampered with, get it from its source again"
            )
        if (
            not isinstance(name, str)
            or not name
            or "." in name
            or len(prefix + name) > _MAX_NAME_LENGTH
        ):
            raise CheckpointError(
                f"has an attribute called {shown(str(name))} in module {shown(prefix) or 'root'}, "
                f"expected a Python name: the file is damaged, get it from its source again"
            )
        if isinstance(value, Record):
            yield from _module_values(f"{prefix}{name}.", value, count, depth + 1)
        elif isinstance(value, Tensor) or (depth == 0 and type(value) is int):
            yield prefix + name, value


def _state_values(root: dict[Any, Any]) -> dict[str, Any]:
    """The state dictionary in what torch.save wrote, without a prefix that all names share."""

    def has_tensors(value: Any) -> bool:
        return isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values())

    nested = [key for key in _WRAPPERS if has_tensors(root.get(key))]
    if len(nested) > 1:
        raise CheckpointError(
            f"holds {len(nested)} sets of weights ({', '.join(nested)}), expected one: torch.save "
            f"the one that is meant, by itself"
        )
    state = root[nested[0]] if nested else root
    if bad := [key for key in state if not isinstance(key, str)]:
        raise CheckpointError(
            f"has {len(bad)} entries whose names are numbers ({shown(str(bad[0]))}), expected "
            f"names of arrays: torch.save the model's state_dict()"
        )
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _check_name(name: str) -> None:
    if not name or len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError("is no name for an array")


def _scalar(value: Any) -> np.ndarray:
    if type(value) is not int or value.bit_length() > 63:
        raise ValueError(f"is a {type(value).__name__}, not a tensor")
    array = np.array(value, dtype=np.int64)
    array.flags.writeable = False
    return array


def _tensor_view(archive: Archive, tensor: Tensor) -> np.ndarray:
    storage = tensor.storage
    entry = f"data/{storage.key}"
    if entry not in archive:
        raise ValueError(f"needs entry {shown(entry)}, which is missing")
    start, size = archive.span(entry)
    if size != storage.count * storage.dtype.itemsize:
        raise ValueError(
            f"has a storage of {_numbers((storage.count,))} {storage.dtype} elements in entry "
            f"{shown(entry)} of {size:,} bytes"
        )
    if 0 in tensor.shape:
        return _empty(tensor.shape, storage.dtype)
    itemsize = storage.dtype.itemsize
    # An axis of length 1 is never stepped along, and PyTorch leaves any stride there.
    strides = [
        stride if length > 1 else 1
        for stride, length in zip(tensor.strides, tensor.shape, strict=True)
    ]
    return np.ndarray(
        tensor.shape,
        storage.dtype,
        buffer=archive.data,
        offset=start + tensor.offset * itemsize,
        strides=[stride * itemsize for stride in strides],
    )


def _check_window(tensor: Tensor) -> None:
    """Raises ValueError where a tensor reaches outside its storage.

    The sums are Python's integers, so none wraps around.
    """
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    where = (
        f"has shape {_numbers(shape)}, strides {_numbers(strides)}, offset {_numbers((offset,))}"
    )
    if len(shape) != len(strides):
        raise ValueError(f"{where}: one stride an axis expected")
    if min(offset, *shape, *strides, 0) < 0:
        raise ValueError(f"{where}: negative numbers")
    if max(offset, *shape, *strides, 0) >= 2**63:
        raise ValueError(f"{where}: numbers over 64 bits")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    needed = offset if 0 in shape else last + 1
    if needed > tensor.storage.count:
        raise ValueError(
            f"{where}: needs a storage of {needed:,} elements, which has {tensor.storage.count:,}"
        )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)  # ValueError where the other axes overflow
    array.flags.writeable = False
    return array


def _numbers(values: tuple[int, ...]) -> str:
    # Python refuses to print integers of thousands of digits.
    shown_values = [str(v) if v.bit_length() <= 256 else f"2^{v.bit_length()}" for v in values[:8]]
    return f"({', '.join(shown_values)}{', ...' if len(values) > 8 else ''})"


def _raise_all(problems: list[str], expected: str) -> None:
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CheckpointError(
            f"{'; '.join(problems[:20])}{more}; expected {expected}: the file is damaged or was "
            f"tampered with, get it from its source again"
        )


# ---- .safetensors -------------------------------------------------------------------------------


def read_safetensors(data: np.memmap) -> dict[str, np.ndarray]:
    """Views of the arrays in a mapped safetensors file, by name.

    Raises:
        CheckpointError: says what is wrong with the file; its path is the caller's to add.
    """
    # The library's numpy interface copies every tensor and knows no bfloat16.
    body = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if body > len(data):
        raise CheckpointError(
            f"is a safetensors file of {len(data):,} bytes, expected at least {body:,} by its "
            f"header: it was cut short, download or copy it again"
        )
    if body > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"has a safetensors header of {body:,} bytes, expected at most {MAX_INDEX_BYTES:,}: "
            f"this is no ordinary checkpoint, check that it is the right file"
        )
    try:
        header = json.loads(data[8:body].tobytes(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"has a malformed safetensors header ({shown(str(error))}), expected JSON: it is "
            f"damaged, get it from its source again"
        ) from None
    arrays: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int, str]] = []
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            _check_name(name)
            dtype, shape, begin, end = _safetensors_entry(entry, len(data) - body)
            spans.append((begin, end, name))
            if 0 in shape:
                arrays[name] = _empty(shape, dtype)
            else:
                arrays[name] = np.ndarray(shape, dtype, buffer=data, offset=body + begin)
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
    position, total = 0, len(data) - body
    for begin, end, name in sorted(spans):
        # No two tensors share bytes and none lie unused: nothing can hide in the file.
        if begin != position and not problems:
            problems.append(f"{shown(name)} begins at byte {begin:,}, where {position:,} is next")
        position = end
    if position != total and not problems:
        problems.append(f"the tensors end at byte {position:,} of {total:,}")
    _raise_all(problems, "a valid safetensors header")
    if not arrays:
        raise CheckpointError("holds no tensors, expected a model's weights: check the file")
    return arrays


def _safetensors_entry(entry: Any, total: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    def are_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

    match entry:
        case {"dtype": str(kind), "shape": shape, "data_offsets": [begin, end]} if (
            len(entry) == 3 and are_sizes(shape) and are_sizes([begin, end])
        ):
            pass
        case _:
            raise ValueError("has no valid dtype, shape and data_offsets")
    if kind not in _SAFETENSORS_DTYPES:
        raise ValueError(f"has dtype {shown(kind)}, not one of {', '.join(_SAFETENSORS_DTYPES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"has {len(shape)} dimensions")
    dtype = _SAFETENSORS_DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize
    if not begin <= end <= total or end - begin != needed:
        raise ValueError(
            f"has {kind} of shape {_numbers(tuple(shape))} ({needed:,} bytes) at {begin:,} to "
            f"{end:,} of {total:,} bytes"
        )
    return dtype, tuple(shape), begin, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate names")
    return result
