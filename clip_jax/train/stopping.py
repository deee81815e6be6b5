"""Stops a run on a signal between two steps, after the same step in all processes."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from clip_jax.signals import Stop, Terminated, deferred

# Seconds that the rest of a step, and its checkpoint, may take.
GRACE = 600.0


@contextlib.contextmanager
def stopping(grace: float = GRACE) -> Iterator[Callable[[int], Stop | None]]:
    """Defers SIGTERM and Ctrl-C to the end of a step, once the first step has ended.

    Before that there is nothing to save, and compiling takes long. With several processes Ctrl-C
    ends each at once, since they can't agree on a step.

    Args:
        grace: the seconds after the signal in which the process must end.

    Yields:
        A function that every process must call after each step, with the step's number. It
        returns the exception to raise once this step is saved, or None to go on.
    """
    with contextlib.ExitStack() as stack:
        asked: Callable[[], Stop | None] | None = None

        def stop_after(step: int) -> Stop | None:
            nonlocal asked
            if jax.process_count() > 1:
                return _stop_of_all(step)
            if asked is None:
                asked = stack.enter_context(deferred(grace))
            return asked()

        yield stop_after


def _stop_of_all(step: int) -> Stop | None:
    """Stops all processes after the same step: when one gets SIGTERM, JAX has them agree on it."""
    from jax.experimental import multihost_utils

    try:
        return Terminated() if multihost_utils.reached_preemption_sync_point(step) else None
    except RuntimeError:  # JAX's preemption service is turned off
        return None
