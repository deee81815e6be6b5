"""Addresses as text: paths, and those that fsspec has a driver for."""

import os
import re


def is_remote(address: str | os.PathLike[str]) -> bool:
    """Whether fsspec is needed to get there."""
    return "://" in os.fspath(address)


def plain(address: str | os.PathLike[str]) -> str:
    """The address as text; a `file://` one as the path that it is."""
    text = os.fspath(address)
    return re.sub("^(file|local)://(?=/)", "", text) if is_remote(text) else text


def absolute(address: str | os.PathLike[str]) -> str:
    """The address as it reads from any folder."""
    return os.fspath(address) if is_remote(address) else os.path.abspath(address)


def folder(address: str | os.PathLike[str]) -> str:
    """The address of a folder, without a slash at its end.

    Raises:
        ValueError: it is blank, as a variable that isn't set is; or names the root of everything.
    """
    path = plain(address)
    if not path.strip():
        raise ValueError(f"expected the name of a folder. Got {path!r}: is a variable not set?")
    found = path.rstrip("/")
    if not found or found.endswith(":"):  # "/", "s3://"
        raise ValueError(f"expected a folder of its own. Got {path!r}, under which is everything")
    return found
