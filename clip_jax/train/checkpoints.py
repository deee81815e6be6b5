"""Checkpoints of a run with Orbax: saved asynchronously, with checksums, the latest few kept."""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax.errors import is_exhausted
from clip_jax.locks import locked
from clip_jax.train.checksums import damage, has_checksums, write_checksums
from clip_jax.train.claim import check_claimed, claim
from clip_jax.train.identity import Identity
from clip_jax.train.step import TrainState
from clip_jax.train.together import all_true, by_first, is_same

CHECKPOINTS, DAMAGED, LOCK = "checkpoints", "damaged", "run.lock"

# Orbax writes its finishing time into this file after the checksums are written.
_UNFINISHED = frozenset({"_CHECKPOINT_METADATA"})


class Checkpoints:
    """The checkpoints in a run's folder; a context manager that waits for the last save on exit."""

    def __init__(self, folder: Path, identity: Identity, *, keep: int, more_steps: bool = False):
        """Opens or creates the folder, and locks it until the context ends.

        Args:
            folder: the folder of the run.
            identity: the settings, data and model of the run.
            keep: how many of the latest checkpoints to keep.
            more_steps: whether the run may have got more steps before it has finished.

        Raises:
            ValueError: the folder belongs to another run (lists what differs); or processes that
                train together differ.
            OSError: another process trains in the folder, or it can't be read or written.
            ModuleNotFoundError: Orbax is not installed.
        """
        try:
            import orbax.checkpoint as ocp
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "training keeps its state with Orbax: pip install 'clip-jax-flax[train]'"
            ) from None
        self._ocp = ocp
        self._folder, self._identity = folder.absolute(), identity
        self._more_steps = more_steps
        self._held = contextlib.ExitStack()
        if not is_same(identity.digest()):
            raise ValueError(
                "the processes don't train the same: give all of them the same configuration, data "
                "and model"
            )
        try:
            by_first(self._take)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
            )
            self._manager = ocp.CheckpointManager(self._folder / CHECKPOINTS, options=options)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self.wait()
                self._manager.close()
            else:
                with contextlib.suppress(Exception):  # must not hide the first error
                    self._manager.close()
        finally:
            self._held.close()

    def restore(self, state: TrainState, iterator: Any) -> TrainState:
        """Restores the state and the iterator from the last intact checkpoint.

        Damaged ones after it are moved away, with a warning. Without any it returns `state`.

        Args:
            state: a state with the shapes and the devices of the result.
            iterator: Grain's iterator; its position is restored in place.

        Raises:
            ValueError: there are checkpoints, but none is intact.
            OSError: an intact one can't be read.
        """
        problems: dict[int, str] = {}
        for step in sorted(by_first(lambda: list(self._manager.all_steps())), reverse=True):
            restored = self._restored(step, state, iterator)
            if not isinstance(restored, str):
                by_first(functools.partial(self._put_aside, problems, step))
                if problems:
                    self._manager.reload()
                return restored
            problems[step] = restored
        if problems:
            listed = "; ".join(f"{step}: {problem}" for step, problem in problems.items())
            folder = self._folder / CHECKPOINTS
            raise ValueError(
                f"none of the checkpoints in {folder} is whole ({listed}): bring one back, or move "
                "that folder away to begin again at the first step"
            )
        return state

    def check_claimed(self) -> None:
        """Checks that the folder is still this run's; all processes must make this call.

        Raises:
            ValueError: it is another run's by now.
            OSError: it was removed, or can't be read.
        """
        by_first(lambda: check_claimed(self._folder, self._identity))

    def save(self, step: int, state: TrainState, iterator: Any) -> None:
        """Starts to save a checkpoint; the state may be overwritten once this returns.

        Raises:
            ValueError: the state isn't finite; the message names the last good checkpoint.
            OSError: this checkpoint or the one before can't be written.
        """
        import grain

        if not _is_finite(state):
            raise self.diverged(
                f"the parameters or the optimizer's state after step {step} hold inf or nan"
            )
        if any(device.platform == "cpu" for device in state.step.devices()):
            # On CPUs Orbax saves from the arrays themselves, which the next step overwrites.
            state = jax.tree.map(jnp.copy, state)
        with self._writing():
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(_as_dict(state)),
                    data=grain.checkpoint.CheckpointSave(iterator),
                ),
            )

    def wait(self) -> None:
        """Waits until all saves are finished.

        Raises:
            OSError: a checkpoint can't be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def diverged(self, what: str) -> ValueError:
        """Returns the error for diverged training; its message names the last checkpoint."""
        step, last = self.last_step(), "There is no checkpoint yet."
        if step is not None:
            last = f"The last good checkpoint is of step {step}, in {self._folder / CHECKPOINTS}."
        return ValueError(
            f"{what}. {last} Train again with a lower optimizer.learning_rate or "
            "optimizer.max_gradient_norm, and another `out`."
        )

    def last_step(self) -> int | None:
        """Waits for all saves; returns the step of the last checkpoint, None without any.

        Raises:
            OSError: a checkpoint can't be written.
        """
        self.wait()
        return self._manager.latest_step()

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(locked(str(self._folder / LOCK), str(self._folder)))
        names = [path.name for path in self._folder.glob(f"{CHECKPOINTS}/*")]
        steps = [int(name) for name in names if name.isdecimal()]
        claim(self._folder, self._identity, max(steps, default=0), more_steps=self._more_steps)

    def _complete(self) -> None:
        """Writes the checksums; called by Orbax once all files are written, before the rename."""
        if jax.process_index() == 0:
            # There is one: one is saved at a time, and leftovers of killed runs were removed.
            (folder,) = (self._folder / CHECKPOINTS).glob(f"*{self._ocp.utils.TMP_DIR_SUFFIX}*")
            write_checksums(folder, without=_UNFINISHED)

    def _restored(self, step: int, state: TrainState, iterator: Any) -> TrainState | str:
        """Returns the state of a checkpoint, or a description of its damage."""
        import grain

        folder = self._folder / CHECKPOINTS / str(step)
        is_known = by_first(lambda: has_checksums(folder))
        if is_known and (problem := by_first(lambda: damage(folder))):
            return problem
        place = iterator.get_state()
        is_damage = not is_known
        try:
            restored = self._manager.restore(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardRestore(_as_dict(state)),
                    data=grain.checkpoint.CheckpointRestore(iterator),
                ),
            )
            problem = None
        except Exception as error:  # Orbax and its libraries raise errors of many kinds
            restored, problem = None, " ".join(str(error).split()) or type(error).__name__
            is_damage = not is_known and not is_exhausted(error)
        if not all_true(problem is None):
            problem = problem or "another process fails"
            if not all_true(is_damage):
                raise OSError(f"the checkpoint {folder} can't be read now: {problem}")
            iterator.set_state(place)
            return problem
        assert restored is not None
        found = TrainState(**restored["state"])
        if not _is_finite(found):
            iterator.set_state(place)
            return "its numbers aren't finite"
        if not is_known and jax.process_index() == 0:
            warnings.warn(f"{folder} has no checksums: it is taken as it is", stacklevel=2)
        return found

    def _put_aside(self, problems: dict[int, str], taken: int) -> None:
        for step, problem in problems.items():
            aside = self._folder / DAMAGED / str(step)
            number = 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{step}-{number}")
            aside.parent.mkdir(exist_ok=True)
            os.rename(self._folder / CHECKPOINTS / str(step), aside)
            warnings.warn(
                f"the checkpoint of step {step} is damaged ({problem}) and was moved to {aside}; "
                f"training goes on from step {taken}",
                stacklevel=2,
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and its libraries raise errors of many kinds
            with contextlib.suppress(Exception):  # the previous save may still be running
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


def _is_finite(state: TrainState) -> bool:
    arrays = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(jax.device_get([_all_finite(x) for x in arrays]))


@jax.jit  # of one array: there are few shapes, and one program for all takes long to compile
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
