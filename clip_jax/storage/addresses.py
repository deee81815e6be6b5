"""Addresses: local paths, and URLs that fsspec has a driver for."""

import os
import re


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether an address needs fsspec."""
    return "://" in os.fspath(address)


def plain(address: str | os.PathLike[str]) -> str:
    """Returns the address as a string, a `file://` one as a plain path."""
    text = os.fspath(address)
    return re.sub("^(file|local)://(?=/)", "", text) if is_remote(text) else text


def absolute(address: str | os.PathLike[str]) -> str:
    """Returns the address, a local path made absolute."""
    return os.fspath(address) if is_remote(address) else os.path.abspath(address)


def folder(address: str | os.PathLike[str]) -> str:
    """Returns the address of a folder without a trailing slash.

    Raises:
        ValueError: it is blank (an unset variable, perhaps), or the root of a file system.
    """
    path = plain(address)
    if not path.strip():
        raise ValueError(f"expected the name of a folder. Got {path!r}: is a variable not set?")
    found = path.rstrip("/")
    if not found or found.endswith(":"):  # "/", "s3://"
        raise ValueError(f"expected a folder of its own. Got {path!r}, under which is everything")
    return found
