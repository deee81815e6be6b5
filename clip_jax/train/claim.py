"""Claims a folder for one training run."""

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
