"""Processes that end with the one that started them, and whole trees of them ended at once."""

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent dies, however that happens; on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was quicker
            os._exit(1)


def kill_tree(pid: int) -> None:
    """Kills a process and all that descend from it; what has ended is no mistake."""
    family = [pid]
    for _ in range(3):  # until nothing has been started meanwhile
        family = [pid, *descendants(pid)]
        for one in family:
            with contextlib.suppress(ProcessLookupError):
                # Stopped first, so that it can start nothing while the others are looked for.
                os.kill(one, signal.SIGSTOP)
        if set(descendants(pid)) <= set(family):
            break
    for one in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes that descend from one, as /proc has them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name, which may hold anything: the state and the parent.
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = list(children.get(pid, []))
    for one in found:  # which grows meanwhile
        found += children.get(one, [])
    return found
