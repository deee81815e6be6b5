"""Checks and error messages common to the readers of checkpoints."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clip_jax.errors import CheckpointError, is_exhausted
from clip_jax.messages import some

MAX_NAME_LENGTH = 1_000
# The largest official model has 1,353 arrays. Checking a hundred times as many takes seconds.
MAX_NAMES = 100_000
MAX_TOLD = 20  # how many problems a message lists
# How the text begins that Git keeps instead of a large file, and what is said about it.
LFS_BEGINNING = b"version https://git-lfs"
LFS_POINTER = "is a Git LFS pointer, expected the file it stands for: run `git lfs pull`"
DAMAGED = "the file is damaged or was tampered with, get it from its source again"

_RESAVE = (
    "load it in PyTorch with weights_only=True and torch.save its state_dict() again with the "
    "current format"
)


class Unread(ValueError):
    """Something is not read although it is not damaged."""


def opened(path: Path) -> BinaryIO:
    """Opens a file that can be memory-mapped; raises CheckpointError for others."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(
            "is a folder, expected a .pt or .safetensors file: give the file inside it, or give a "
            "folder written by clip_jax.save to clip_jax.load"
        )
    # Opening a pipe would wait for a writer, and pipes can't be mapped.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is a device or a pipe, expected a file: copy it to a disk first")
    if status.st_size == 0:
        raise CheckpointError(
            "is empty (0 bytes), expected a checkpoint: the download or copy failed, repeat it"
        )
    return open(path, "rb")


def diagnosis(start: bytes) -> str:
    """Describes what a file is that is no checkpoint, and what to do about it."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"PK\x03\x04"):
        return (
            "is a ZIP archive, as torch.save writes, expected safetensors: if it is a checkpoint, "
            "give this file to clip_jax.load or `clip-jax convert`, not the folder"
        )
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
    if text.startswith(LFS_BEGINNING):
        return LFS_POINTER
    return (
        f"begins with {start[:8]!r}, expected a ZIP archive (.pt) or safetensors: it is damaged or "
        f"another kind of file, check it or get it from its source again"
    )


def check_name(name: str) -> None:
    """Raises ValueError for a name that would garble a terminal."""
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError("is no name for an array")


def check_count(count: int) -> None:
    """Raises CheckpointError for more names than any model has."""
    if count > MAX_NAMES:
        raise CheckpointError(
            f"has more than {MAX_NAMES:,} names, expected a model's few thousand: this is no "
            f"ordinary checkpoint, check that it is the right file"
        )


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns a read-only array without elements; raises ValueError if its axes overflow."""
    array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array


def numbers(values: tuple[int, ...]) -> str:
    """Formats a shape or strides from an untrusted file in a bounded number of digits."""
    # Python refuses to print integers of thousands of digits.
    shown_values = [str(v) if v.bit_length() <= 256 else f"2^{v.bit_length()}" for v in values[:8]]
    return f"({', '.join(shown_values)}{', ...' if len(values) > 8 else ''})"


def raise_all(problems: list[str], expected: str, unread: list[str], remedy: str) -> None:
    """Raises CheckpointError if there are problems, or entries that can't be read here.

    Args:
        problems: damaged entries.
        expected: what there should be instead.
        unread: entries that are not damaged, but can't be read here.
        remedy: what to do about the latter.
    """
    every = problems + unread
    if not every:
        return
    rest = f"expected {expected}: {DAMAGED}" if problems else remedy
    raise CheckpointError(f"{some(every, MAX_TOLD, '; ')}; {rest}")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Has errors of reading a file name it; that there is none, and exhaustion, pass as they are.

    Raises:
        CheckpointError: it can't be read, or the block has raised that.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_exhausted(error):
            raise
        raise CheckpointError(
            f"{path}: can't be read ({error.strerror or error}), expected a readable file: check "
            f"its permissions and the disk it lies on"
        ) from None
    except CheckpointError as error:
        raise named(path, error) from None


def named(path: str | os.PathLike[str], error: CheckpointError) -> CheckpointError:
    """Returns the error with the path before its message, unless it begins with it already."""
    message = str(error)
    if message.startswith((f"{path}:", f"{path} ", f"{path}{os.sep}")):
        return error
    return CheckpointError(f"{path}: {message}")
