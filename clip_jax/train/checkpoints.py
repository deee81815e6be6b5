"""Checkpoints of a run by Orbax: written beside the training, the last few kept."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.train.step import TrainState

IDENTITY, CHECKPOINTS = "run.json", "checkpoints"


class Checkpoints:
    """The checkpoints in a run's folder; a context that waits for the last one as it ends."""

    def __init__(self, folder: Path, identity: dict[str, Any], *, keep: int):
        """Opens the folder, or begins a new one.

        Args:
            folder: of the run.
            identity: what the runs in it have in common, as plain JSON.
            keep: how many of the last checkpoints are kept.

        Raises:
            ValueError: the folder belongs to another run; lists what differs.
            ModuleNotFoundError: Orbax is not installed.
        """
        try:
            import orbax.checkpoint as ocp
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "training keeps its state with Orbax: pip install 'clip-jax-flax[train]'"
            ) from None
        self._ocp = ocp
        self._folder = folder.absolute()
        _claim(folder, identity)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self._folder / CHECKPOINTS, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            with contextlib.suppress(Exception):  # nothing that would hide the error
                self._manager.close()
            return
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    def restore(self, state: TrainState, iterator: Any) -> TrainState:
        """The state of the last checkpoint, and the iterator put where it was; else as they are.

        Args:
            state: what one looks like, on the devices where it shall be.
            iterator: Grain's.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        import grain

        restored = self._manager.restore(
            step,
            args=self._ocp.args.Composite(
                state=self._ocp.args.StandardRestore(_as_dict(state)),
                data=grain.checkpoint.CheckpointRestore(iterator),
            ),
        )
        return TrainState(**restored["state"])

    def save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Begins to write a checkpoint; the state may be written over when this returns.

        Raises:
            OSError: this one or the one before can't be written.
        """
        import grain

        if any(device.platform == "cpu" for device in state.step.devices()):
            # There Orbax writes from the arrays themselves, which the next step is about to reuse.
            state = jax.tree.map(jnp.copy, state)
        with self._writing():
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(_as_dict(state)),
                    data=grain.checkpoint.CheckpointSave(iterator),
                ),
            )

    def last_good(self) -> str:
        """A sentence that names the last checkpoint."""
        self._manager.wait_until_finished()
        step = self._manager.latest_step()
        if step is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is of step {step}, in {self._folder / CHECKPOINTS}."

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and what it writes with have errors of many kinds
            with contextlib.suppress(Exception):  # the one before may still be on its way
                self._manager.wait_until_finished()
            self._manager.reload()
            steps = self._manager.all_steps()
            last = f"the last good one is of step {max(steps)}" if steps else "there is none yet"
            raise OSError(
                f"a checkpoint can't be written to {self._folder}, {last}: {error}. "
                "Make room, and run the same command again."
            ) from error


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "parameters": state.parameters,
        "statistics": state.statistics,
        "optimizer": state.optimizer,
    }


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Makes the folder this run's, or refuses another's."""
    path = folder / IDENTITY
    if path.exists():
        before = _read(path)
        names = sorted(before.keys() | identity.keys())
        missing = object()
        differing = [n for n in names if before.get(n, missing) != identity.get(n, missing)]
        if differing:
            lines = [f"- {n}: there {before.get(n)!r}, here {identity.get(n)!r}" for n in differing]
            raise ValueError(
                "\n".join(
                    [f"{folder} holds another run; give another `out`. They differ in:", *lines]
                )
            )
        return
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(identity, indent=1) + "\n")
        os.replace(aside, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged and doesn't tell whose checkpoints are beside it: {error}. "
            "Remove it if they are this run's, else give another `out`."
        ) from None
    return document
