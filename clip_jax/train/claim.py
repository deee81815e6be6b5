"""Claims a folder for one training run."""

import errno
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_jax.messages import counted
from clip_jax.storage import storage
from clip_jax.train.identity import Identity, is_incomplete

IDENTITY = "run.json"


def claim(folder: Path, identity: Identity, last_step: int, *, more_steps: bool) -> None:
    """Claims the folder for this run by writing `run.json`, unless it is another run's.

    A finished run may be given more steps, which `run.json` then notes.

    Args:
        folder: the folder of the run.
        identity: the settings, data and model of the run.
        last_step: the step of the last checkpoint; 0 without any.
        more_steps: whether it is meant that there are more steps than before; a run that hasn't
            finished gets them only then.

    Raises:
        ValueError: it is another run's (lists what differs), or the file is damaged.
        OSError: the file can't be read or written.
    """
    path = folder / IDENTITY
    noted = _read(path)
    if noted is not None:
        before = identity.fewer_steps(noted)
        if before is not None and (more_steps or last_step == before):
            if not more_steps:
                warnings.warn(
                    f"{folder} had finished after {counted(before, 'step')}: it goes on to step "
                    f"{identity.total_steps:,}, with the learning rates of so long a run",
                    stacklevel=2,
                )
            _write(path, identity.continued(noted, last_step))
            return
        _refuse_another(folder, identity, noted)
        if not is_incomplete(noted):
            return
        warnings.warn(
            f"{folder} was begun by an earlier version, which didn't note what its data were: it "
            "goes on with those that are there now",
            stacklevel=2,
        )
    _write(path, identity.document())


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


def _write(path: Path, document: Mapping[str, Any]) -> None:
    storage(path).write(str(path), json.dumps(document, indent=1).encode() + b"\n")


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
