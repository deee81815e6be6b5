"""Reads `.npz` files of NumPy arrays, from a disk or an object store; nothing in them is executed.

Unlike `numpy.load`, this checks what each array claims against the bytes that are there before any
memory is taken, and reads only the arrays that are wanted: a training checkpoint also has those of
the optimizer.
"""

import collections
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, BinaryIO, cast

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from clip_jax.convert.archive import Contents, shown
from clip_jax.convert.checks import check_count, check_name, naming, raise_all
from clip_jax.errors import CheckpointError
from clip_jax.messages import some
from clip_jax.storage import storage

SUFFIX = ".npz"
# How many times the file's size the arrays may take: compressed weights shrink little.
_EXPANSION = 16


def is_npz(path: str | os.PathLike[str]) -> bool:
    """Whether a path or an address is called so, and is no folder."""
    return os.fspath(path).endswith(SUFFIX) and not os.path.isdir(path)


def read_npz(
    path: str | os.PathLike[str], wanted: Callable[[list[str]], list[str]]
) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file by their names.

    Args:
        path: the file, or its address, such as gs://.
        wanted: given all names, returns those to read.

    Returns:
        Arrays in memory; bfloat16, which NumPy stores as void of two bytes, as such.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no such file, or a damaged one; lists every bad array.
    """
    path = os.fspath(path)
    where = storage(path)
    with naming(path), where.open(path) as file:
        try:
            with zipfile.ZipFile(cast(BinaryIO, Contents(cast(BinaryIO, file)))):
                pass  # raises if the table of contents is too large
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, where.size(path), wanted)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
            raise CheckpointError(
                f"can't be read as a ZIP archive of arrays ({shown(str(error))}), expected what "
                f"numpy.savez writes: it was cut short or damaged, download or copy it again"
            ) from None


def _arrays(
    archive: zipfile.ZipFile, size: int, wanted: Callable[[list[str]], list[str]]
) -> dict[str, np.ndarray]:
    entries = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    check_count(len(entries))
    infos = dict(entries)
    if len(infos) < len(entries):
        twice = [
            name for name, count in collections.Counter(n for n, _ in entries).items() if count > 1
        ]
        raise CheckpointError(
            f"has {some([shown(name) for name in twice], 5)} more than once, expected each array "
            f"once: it is damaged, download or copy it again"
        )
    found: dict[str, np.ndarray] = {}
    problems: list[str] = []
    budget = _EXPANSION * size
    for name in wanted(list(infos)):
        budget -= infos[name].file_size
        if budget < 0:
            raise CheckpointError(
                f"unpacks to more than {_EXPANSION} times its size, expected about as much: it is "
                f"no ordinary checkpoint"
            )
        try:
            check_name(name)
            with archive.open(infos[name]) as file:
                found[name] = _array(file, infos[name].file_size)
        except (ValueError, zipfile.BadZipFile, zlib.error) as error:
            problems.append(f"{shown(name)}: {shown(str(error))}")
    raise_all(problems, "arrays as numpy.savez writes them", [], "")
    return found


def _array(file: IO[bytes], size: int) -> np.ndarray:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"has version {version} of NumPy's format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which may run code")
    count = math.prod(shape)
    if count * dtype.itemsize != size - file.tell():
        raise ValueError(f"has the shape {shape} of {dtype}, but {size:,} bytes")
    data = file.read()  # to the end, where the checksum is compared
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")
    return array.view(ml_dtypes.bfloat16) if dtype == np.dtype("V2") else array
