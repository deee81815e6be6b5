"""Claims a folder for one training run."""

import errno
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.storage import storage
from clip_jax.train.identity import Identity, is_incomplete

IDENTITY = "run.json"


def claim(folder: Path, identity: Identity) -> None:
    """Claims the folder for this run by writing `run.json`, unless it is another run's.

    Raises:
        ValueError: it is another run's (lists what differs), or the file is damaged.
        OSError: the file can't be read or written.
    """
    path = folder / IDENTITY
    noted = _read(path)
    if noted is not None:
        _refuse_another(folder, identity, noted)
        if not is_incomplete(noted):
            return
        warnings.warn(
            f"{folder} was begun by an earlier version, which didn't note what its data were: it "
            "goes on with those that are there now",
            stacklevel=2,
        )
    storage(path).write(str(path), json.dumps(identity.document(), indent=1).encode() + b"\n")


def check_claimed(folder: Path, identity: Identity) -> None:
    """Checks that the folder is still this run's.

    Somebody may have removed it since, and begun another run in its place.

    Raises:
        ValueError: it is another run's (lists what differs), or the file is damaged.
        OSError: the folder was removed, or can't be read.
    """
    noted = _read(folder / IDENTITY)
    if noted is None:
        reason = "was removed during the run; start the same command again"
        raise FileNotFoundError(errno.ENOENT, reason, str(folder / IDENTITY))
    _refuse_another(folder, identity, noted)


def _refuse_another(folder: Path, identity: Identity, noted: Mapping[str, Any]) -> None:
    if lines := identity.differences(noted):
        raise ValueError(
            f"{folder} holds another run: go on with what that one had, or give another `out`. "
            "They differ in:\n" + "\n".join(lines)
        )


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
