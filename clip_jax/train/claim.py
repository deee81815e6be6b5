"""Whose a run's folder is: one run's, and of one training at a time."""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.storage import storage
from clip_jax.train.identity import Identity, is_incomplete

IDENTITY, LOCK = "run.json", "run.lock"
# What systems say whose files can't be locked.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """The right to train in a folder, which ends with the process, however that ends."""

    def __init__(self, folder: Path):
        """Takes it.

        Raises:
            ValueError: another process has it.
            OSError: the folder can't be written to.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        # Not truncated as it is opened: what is in it is of who has it.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip()
            self.release()
            raise ValueError(
                f"{folder} is being trained in by another process ({holder or 'unknown'}): wait "
                "until it ends, or give another `out`"
            ) from None
        except OSError as error:
            self.release()
            if error.errno not in _NO_LOCKS:
                raise OSError(error.errno, error.strerror, str(path)) from None
            warnings.warn(
                f"{folder} lies on a file system without locks: see to it that no other training "
                "writes there",
                stacklevel=2,
            )
            return
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Gives it back; the file stays, since a second process may be about to lock it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def claim(folder: Path, identity: Identity) -> None:
    """Makes the folder this run's, or refuses another's.

    Raises:
        ValueError: it is another's, and lists what differs; or what is noted of it is damaged.
        OSError: it can't be read or written.
    """
    path = folder / IDENTITY
    noted = _read(path)
    if noted is not None:
        if lines := identity.differences(noted):
            raise ValueError(
                "\n".join(
                    [
                        f"{folder} holds another run: go on with what that one had, or give "
                        "another `out`. They differ in:",
                        *lines,
                    ]
                )
            )
        if not is_incomplete(noted):
            return
        warnings.warn(
            f"{folder} was begun by an earlier version, which didn't note what its data were: it "
            "goes on with those that are there now",
            stacklevel=2,
        )
    storage(path).write(str(path), json.dumps(identity.document(), indent=1).encode() + b"\n")


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged and doesn't tell whose checkpoints are beside it: {error}. "
            "Remove it if they are this run's, else give another `out`."
        ) from None
    return document
