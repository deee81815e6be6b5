"""Reads checkpoint files to arrays by their PyTorch names, without PyTorch and without copies."""

import errno
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from clip_jax.convert.archive import MAX_INDEX_BYTES, Archive, shown
from clip_jax.convert.checks import naming, opened
from clip_jax.convert.flax_msgpack import is_msgpack, read_msgpack
from clip_jax.convert.legacy import LegacyFile, is_legacy
from clip_jax.convert.pickled import Record, Storage, kind_of
from clip_jax.convert.safetensors import read_safetensors
from clip_jax.convert.sharded import is_index, read_sharded
from clip_jax.convert.tensors import Span, arrays_of
from clip_jax.convert.torchscript import module_values
from clip_jax.convert.unpickle import load
from clip_jax.convert.wrappers import state_values, without_prefix
from clip_jax.errors import CheckpointError


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads every array of a checkpoint file by its PyTorch name.

    The kind of file is recognised by its content: TorchScript archives (the official `.pt` files),
    state dictionaries from `torch.save`, of its format before PyTorch 1.6 too, bare or nested in a
    training checkpoint, `.safetensors` files, and `flax_model.msgpack`, whose arrays get PyTorch's
    names and layout. For a checkpoint in shards, give its index (`model.safetensors.index.json`).
    Of a TorchScript archive, parameters and buffers are read.

    Nothing in a file is ever executed: what lies beside the weights, such as the settings of a
    training, isn't read. Plain integers among the arrays, such as `input_resolution` in some
    archives, become 0-d arrays. A `module.` prefix is dropped if all names have it, and
    `_orig_mod.` of torch.compile and its like are dropped everywhere.

    Arrays are read-only views of the memory-mapped file: they are read from the disk only on use,
    and the file must not be changed in place while they exist.

    Raises:
      FileNotFoundError: there is no such file.
      CheckpointError: it can't be read, or holds no or several sets of weights, which are named;
          lists every bad tensor.
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
    start = data[:32].tobytes()
    if _is_archive(data):
        archive = Archive(file, data)
        root = load(archive.read("data.pkl", MAX_INDEX_BYTES))
        if isinstance(root, Record):
            return arrays_of(module_values(archive, root), data, _span_in(archive))
        return _state_dict(root, data, _span_in(archive))
    if is_legacy(start):
        legacy = LegacyFile(data)
        return _state_dict(legacy.root, data, legacy.span)
    if is_msgpack(start[:9]):
        return read_msgpack(data)
    return without_prefix(read_safetensors(data)[0])


def _is_archive(data: np.memmap) -> bool:
    return data[:4].tobytes() == b"PK\x03\x04"


def _state_dict(root: Any, data: np.memmap, span: Span) -> dict[str, np.ndarray]:
    if not isinstance(root, dict):
        raise CheckpointError(
            f"holds a {kind_of(root)}, expected a module of TorchScript or a dictionary of "
            f"tensors: if you trust it, load it in PyTorch and torch.save the model's state_dict()"
        )
    return arrays_of(state_values(root), data, span)


def _span_in(archive: Archive) -> Span:
    def span(storage: Storage) -> tuple[int, int]:
        entry = f"data/{storage.key}"
        if entry not in archive:
            raise ValueError(f"needs entry {shown(entry)}, which is missing")
        return archive.span(entry)

    return span
