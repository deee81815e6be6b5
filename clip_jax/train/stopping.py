"""A run that is asked to stop ends between two steps, alike in all of its processes."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from clip_jax.signals import Stop, Terminated, deferred

# Seconds that the rest of a step, and its checkpoint, may take.
GRACE = 600.0


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[int], Stop | None]]:
    """Has SIGTERM and Ctrl-C wait for the end of a step, from the end of the first one on.

    Before that there is nothing to be saved, and compiling takes long. Of several processes Ctrl-C
    ends each at once, since they can't agree on a step.

    Yields:
        What every process calls after each of its steps, with the step's number: gives the
        exception to raise once this step is saved, None where there is no reason to stop.
    """
    with contextlib.ExitStack() as stack:
        asked: Callable[[], Stop | None] | None = None

        def stop_after(step: int) -> Stop | None:
            nonlocal asked
            if jax.process_count() > 1:
                return _stop_of_all(step)
            if asked is None:
                asked = stack.enter_context(deferred(GRACE))
            return asked()

        yield stop_after


def _stop_of_all(step: int) -> Stop | None:
    """Once one of the processes gets SIGTERM, JAX finds a step that none of them has passed."""
    from jax.experimental import multihost_utils

    try:
        return Terminated() if multihost_utils.reached_preemption_sync_point(step) else None
    except RuntimeError:  # its service for that is turned off
        return None
