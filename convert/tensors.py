"""Makes arrays of the tensors that a pickle describes: views of the mapped file, within bounds."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax.convert.archive import shown
from clip_jax.convert.checks import Unread, check_count, check_name, empty, numbers, raise_all
from clip_jax.convert.pickled import Storage, Tensor, kind_of
from clip_jax.errors import CheckpointError

# Expanded (stride 0) and shared tensors let a small file describe a huge model. A view is free, but
# a copy of it is not, so the total size of all views must be in proportion to the file. Tied
# weights at most double a file; the floor is for tiny files with an expanded mask.
_EXPANSION = 16
_EXPANSION_FLOOR = 64 << 20

# Returns (start, size) of a storage's bytes in the file.
Span = Callable[[Storage], tuple[int, int]]


def arrays_of(found: Mapping[str, Any], data: np.memmap, span: Span) -> dict[str, np.ndarray]:
    """Returns views of a mapped file for tensors and plain integers.

    Args:
        found: them by name.
        data: the file.
        span: where a storage lies in it; raises ValueError if it has none.

    Raises:
        CheckpointError: there are no tensors; or some lie outside of their storages, or are no
            tensors; lists all of these.
    """
    check_count(len(found))
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            "holds no tensors, expected a model's weights: save the model itself (not a frozen "
            "TorchScript module, whose weights are constants of its code)"
        )
    arrays: dict[str, np.ndarray] = {}
    problems: list[str] = []
    unread: list[str] = []
    budget = _EXPANSION * len(data) + _EXPANSION_FLOOR
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
                arrays[name] = _view(value, data, span)
            else:
                arrays[name] = _scalar(value)
        except Unread as error:
            unread.append(f"{shown(name)} {error}")
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
    remedy = "take what is no tensor out in PyTorch and torch.save the rest"
    raise_all(problems, "tensors that lie within their storages", unread, remedy)
    return arrays


def _scalar(value: Any) -> np.ndarray:
    if type(value) is not int or value.bit_length() > 63:
        raise Unread(f"is a {kind_of(value)}, not a tensor")
    array = np.array(value, dtype=np.int64)
    array.flags.writeable = False
    return array


def _view(tensor: Tensor, data: np.memmap, span: Span) -> np.ndarray:
    storage = tensor.storage
    start, size = span(storage)
    if size != storage.count * storage.dtype.itemsize:
        raise ValueError(
            f"has a storage of {numbers((storage.count,))} {storage.dtype} elements in "
            f"{shown(storage.key)} of {size:,} bytes"
        )
    if 0 in tensor.shape:
        return empty(tensor.shape, storage.dtype)
    itemsize = storage.dtype.itemsize
    first = storage.window[0] if storage.window else 0
    # The stride of an axis of length 1 is never used, and PyTorch may write any number.
    strides = [
        stride if length > 1 else 1
        for stride, length in zip(tensor.strides, tensor.shape, strict=True)
    ]
    return np.ndarray(
        tensor.shape,
        storage.dtype,
        buffer=data,
        offset=start + (first + tensor.offset) * itemsize,
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
    count = tensor.storage.count
    if tensor.storage.window:
        first, size = tensor.storage.window
        if min(first, size) < 0 or first + size > count:
            raise ValueError(
                f"has {numbers((size,))} elements from {numbers((first,))} on for its storage, "
                f"which has {numbers((count,))}"
            )
        count = size
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    needed = offset if 0 in shape else last + 1
    if needed > count:
        raise ValueError(f"{where}: needs a storage of {needed:,} elements, which has {count:,}")
