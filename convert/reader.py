"""Reads checkpoint files to arrays by their PyTorch names, without PyTorch and without copies."""

import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clip_jax.convert.archive import MAX_INDEX_BYTES, Archive, shown
from clip_jax.convert.checks import (
    MAX_NAME_LENGTH,
    Unread,
    check_count,
    check_name,
    empty,
    naming,
    numbers,
    opened,
    raise_all,
    without_prefix,
)
from clip_jax.convert.flax_msgpack import is_msgpack, read_msgpack
from clip_jax.convert.safetensors import read_safetensors
from clip_jax.convert.sharded import is_index, read_sharded
from clip_jax.convert.unpickle import Record, Tensor, load
from clip_jax.errors import CheckpointError

# Keys under which training scripts store the model's state dictionary in a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

# Expanded (stride 0) and shared tensors let a small file describe a huge model. A view is free, but
# a copy of it is not, so the total size of all views must be in proportion to the file. Tied
# weights at most double a file; the floor is for tiny files with an expanded mask.
_EXPANSION = 16
_EXPANSION_FLOOR = 64 << 20

_MAX_DEPTH = 64


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a checkpoint file by its PyTorch name.

    The kind of file is recognised by its content: TorchScript archives (the official `.pt` files),
    state dictionaries from `torch.save`, bare or nested in a training checkpoint, `.safetensors`
    files, and `flax_model.msgpack`, whose arrays get PyTorch's names and layout. For a checkpoint
    in shards, give its index (`model.safetensors.index.json`). Nothing in a file is ever executed.
    Plain integers beside the arrays, such as `input_resolution` in some archives, become 0-d
    arrays. A `module.` prefix is dropped if all names have it.

    Arrays are read-only views of the memory-mapped file: they are read from the disk only on use,
    and the file must not be changed in place while they exist.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it can't be read, or holds more than tensors; lists every bad tensor.
          Shards that don't fit their index; lists every array that is missing or misplaced.
      OSError: there are too many open files.
      MemoryError: there is not enough memory.
    """
    path = Path(path)
    if is_index(path.name):
        return read_sharded(path, read_checkpoint)
    try:
        with naming(path), opened(path) as file:
            data = np.memmap(file, dtype=np.uint8, mode="r")
            return _read(file, data)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "no such checkpoint, check the path or download it first", str(path)
        ) from None


def _read(file: BinaryIO, data: np.memmap) -> dict[str, np.ndarray]:
    if data[:4].tobytes() == b"PK\x03\x04":
        return _read_archive(Archive(file, data))
    if is_msgpack(data[:9].tobytes()):
        return read_msgpack(data)
    return without_prefix(read_safetensors(data)[0])


def _read_archive(archive: Archive) -> dict[str, np.ndarray]:
    root = load(archive.read("data.pkl", MAX_INDEX_BYTES))
    if isinstance(root, Record):
        found = dict(_module_values("", root, [0]))
    elif isinstance(root, dict):
        found = state_values(root)
    else:
        raise CheckpointError(
            f"holds a {type(root).__name__}, expected a module or a dictionary of tensors: "
            f"torch.save the model's state_dict()"
        )
    check_count(len(found))
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            "holds no tensors, expected a model's weights: save the model itself (not a frozen "
            "TorchScript module, whose weights are constants of its code)"
        )
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    unread: list[str] = []
    budget = _EXPANSION * len(archive.data) + _EXPANSION_FLOOR
    for name, value in found.items():
        try:
            check_name(name)
            if isinstance(value, Tensor):
                _check_window(value)
                budget -= math.prod(value.shape) * value.storage.dtype.itemsize
                if budget < 0:
                    raise ValueError(
                        f"of shape {numbers(value.shape)} brings the arrays to more than "
                        f"{_EXPANSION} times the file's size"
                    )
                arrays[name] = _tensor_view(archive, value)
            else:
                arrays[name] = _scalar(value)
        except Unread as error:
            unread.append(f"{shown(name)} {error}")
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
    remedy = "take what is no tensor out in PyTorch and torch.save the rest"
    raise_all(problems, "tensors that lie within their storages", unread, remedy)
    return arrays


def _module_values(
    prefix: str, record: Record, count: list[int], depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Yields the tensors of a module and its children by path, and the root's plain integers.

    Deeper integers, lists and strings are settings of layers, which PyTorch's own state_dict()
    doesn't contain either.
    """
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"nests modules more than {_MAX_DEPTH} deep at {shown(prefix)}, expected a tree of "
            f"modules: the file was tampered with, get it from its source again"
        )
    for name, value in (record.state or {}).items():
        # With nested shared modules the number of paths can grow exponentially.
        count[0] += 1
        check_count(count[0])
        if (
            not isinstance(name, str)
            or not name
            or "." in name
            or len(prefix + name) > MAX_NAME_LENGTH
        ):
            raise CheckpointError(
                f"has an attribute called {shown(str(name))} in module {shown(prefix) or 'root'}, "
                f"expected a Python name: the file is damaged, get it from its source again"
            )
        if isinstance(value, Record):
            yield from _module_values(f"{prefix}{name}.", value, count, depth + 1)
        elif isinstance(value, Tensor) or (depth == 0 and type(value) is int):
            yield prefix + name, value


def state_values(root: dict[Any, Any], kind: type = Tensor) -> dict[str, Any]:
    """Finds the state dictionary in a file of torch.save, and drops a shared `module.` prefix.

    Args:
        root: the content of the file.
        kind: the type of its tensors.

    Raises:
        CheckpointError: it holds several state dictionaries, or names that are not strings.
    """

    def has_tensors(value: Any) -> bool:
        return isinstance(value, dict) and any(isinstance(v, kind) for v in value.values())

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
    return without_prefix(state)


def _scalar(value: Any) -> np.ndarray:
    if type(value) is not int or value.bit_length() > 63:
        raise Unread(f"is a {type(value).__name__}, not a tensor")
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
            f"has a storage of {numbers((storage.count,))} {storage.dtype} elements in entry "
            f"{shown(entry)} of {size:,} bytes"
        )
    if 0 in tensor.shape:
        return empty(tensor.shape, storage.dtype)
    itemsize = storage.dtype.itemsize
    # The stride of an axis of length 1 is never used, and PyTorch may write any number.
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
    """Raises ValueError if a tensor reaches outside its storage.

    Python's integers don't overflow in the sums.
    """
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    where = f"has shape {numbers(shape)}, strides {numbers(strides)}, offset {numbers((offset,))}"
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
