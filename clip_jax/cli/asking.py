"""Asks before a command writes into a folder that holds other things."""

import contextlib
import os
import sys
from collections.abc import Collection

from clip_jax.cli.output import complain, printable
from clip_jax.messages import counted


def may_write(folder: str, own: Collection[str]) -> bool:
    """Returns whether to write into a folder; asks if it holds other things.

    Where nobody can be asked, it is said and done. Object stores have no folders to be mistaken in.

    Args:
        folder: the path of the folder.
        own: names of files, one of which shows that the command has written there before.
    """
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # what prevents it is said by who writes
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    if not names or any(name in own for name in names):
        return True
    holds = f"{printable(folder)} holds {counted(len(names), 'other file')} already"
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        complain(f"warning: {holds}; what is written goes beside them")
        return True
    sys.stderr.write(f"clip-jax: {holds}. Write beside them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
