"""Reads safetensors files to arrays without a copy, and writes them."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jax.typing import DTypeLike

from clip_jax.convert.archive import MAX_INDEX_BYTES, shown
from clip_jax.convert.checks import (
    DAMAGED,
    Unread,
    check_count,
    check_name,
    diagnosis,
    empty,
    numbers,
    raise_all,
)
from clip_jax.convert.json_file import without_duplicates
from clip_jax.convert.pickled import MAX_DIMENSIONS
from clip_jax.errors import CheckpointError
from clip_jax.memory import ALIGNMENT

_MAX_HEADER = 100_000_000  # the format's own limit; larger numbers mean another format
_DTYPES = {
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
NAMES = {dtype.newbyteorder("="): name for name, dtype in _DTYPES.items()}


def read_safetensors(data: np.memmap) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns views of the arrays in a mapped safetensors file by name, and its metadata.

    Raises:
        CheckpointError: the file is faulty; the caller must add its path to the message.
    """
    # Not by the library: its NumPy interface copies every tensor and lacks bfloat16.
    start = data[:512].tobytes()
    body = 8 + int.from_bytes(start[:8], "little")
    # There is no magic number, only 8 bytes of header length and then JSON.
    if start[8:9] != b"{" or body > 8 + _MAX_HEADER:
        raise CheckpointError(diagnosis(start))
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
        header = json.loads(data[8:body].tobytes(), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"has a malformed safetensors header ({shown(str(error))}), expected JSON: it is "
            f"damaged, get it from its source again"
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(
            f"has a {type(metadata).__name__} for its metadata, expected an object: {DAMAGED}"
        )
    check_count(len(header))
    arrays: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int, str]] = []
    problems: list[str] = []
    unread: list[str] = []
    for name, entry in header.items():
        try:
            check_name(name)
            dtype, shape, begin, end = _entry(entry, len(data) - body)
            spans.append((begin, end, name))
            if 0 in shape:
                arrays[name] = empty(shape, dtype)
            else:
                arrays[name] = np.ndarray(shape, dtype, buffer=data, offset=body + begin)
        except Unread as error:
            unread.append(f"{shown(name)} {error}")
        except ValueError as error:
            problems.append(f"{shown(name)} {error}")
    position, total = 0, len(data) - body
    for begin, end, name in sorted(spans):
        # Tensors must not overlap or leave gaps: nothing can hide in the file.
        if begin != position and not problems and not unread:
            problems.append(f"{shown(name)} begins at byte {begin:,}, where {position:,} is next")
        position = end
    if position != total and not problems and not unread:
        problems.append(f"the tensors end at byte {position:,} of {total:,}")
    remedy = "load the file in PyTorch, convert such tensors (.float()) and save it again"
    raise_all(problems, "a valid safetensors header", unread, remedy)
    if not arrays:
        raise CheckpointError("holds no tensors, expected a model's weights: check the file")
    return arrays, metadata


def _entry(entry: Any, total: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    def are_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

    match entry:
        case {"dtype": str(kind), "shape": shape, "data_offsets": [begin, end]} if (
            len(entry) == 3 and are_sizes(shape) and are_sizes([begin, end])
        ):
            pass
        case _:
            raise ValueError("has no valid dtype, shape and data_offsets")
    if kind not in _DTYPES:
        raise Unread(f"has dtype {shown(kind)}, not one of {', '.join(_DTYPES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"has {len(shape)} dimensions")
    dtype = _DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize
    if not begin <= end <= total or end - begin != needed:
        raise ValueError(
            f"has {kind} of shape {numbers(tuple(shape))} ({needed:,} bytes) at {begin:,} to "
            f"{end:,} of {total:,} bytes"
        )
    return dtype, tuple(shape), begin, end


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    dtype: DTypeLike | None,
    metadata: Mapping[str, str],
) -> None:
    """Writes arrays one by one, so that no memory is needed for all of them.

    Each begins at a multiple of 64 bytes, as far as their sizes allow, so that JAX can compute on a
    mapped file in place.

    Args:
        path: the path of the file. The write isn't atomic: use a temporary path.
        arrays: NumPy or JAX arrays by name, of the dtypes in `NAMES`.
        dtype: the dtype to cast all of them to; by default each keeps its own.
        metadata: the file's metadata.

    Raises:
        OSError: it can't be written.
    """
    # Not by the library: its NumPy interface copies everything first, and scrambles arrays that are
    # not C-contiguous.
    dtypes = {name: np.dtype(dtype or array.dtype) for name, array in arrays.items()}
    sizes = {name: np.size(array) * dtypes[name].itemsize for name, array in arrays.items()}
    # The format allows no gaps between arrays. Those whose size would misalign the next one come
    # last, wide dtypes first, so that at least each number is aligned.
    order = sorted(arrays, key=lambda name: (sizes[name] % ALIGNMENT > 0, -dtypes[name].itemsize))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + sizes[name]
        header[name] = {
            "dtype": NAMES[dtypes[name].newbyteorder("=")],
            "shape": np.shape(arrays[name]),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            array = np.asarray(arrays[name]).astype(dtypes[name].newbyteorder("<"), "C", copy=False)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
