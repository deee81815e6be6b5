"""What is lost with a process or a node of a Ray cluster, told from errors of our own code."""

from typing import Any


class Lost(Exception):
    """A process or an object of the cluster is gone; what it did is to be done again."""


class EncoderLost(Lost):
    """An encoder is gone, and its chunks with it."""


def raised(error: BaseException) -> BaseException:
    """Returns the error to raise for one of Ray's: that of our own code, or `Lost`."""
    from ray import exceptions

    if isinstance(error, exceptions.RayTaskError):
        cause = error.cause
        if isinstance(cause, exceptions.RayError):
            return raised(cause)
        return cause if isinstance(cause, BaseException) else Lost(str(error))
    if isinstance(error, exceptions.RayActorError):
        return EncoderLost(str(error))
    return Lost(str(error))


def result_of(answer: Any) -> Any:
    """Returns what a process has answered.

    Raises:
        Lost: it was lost.
        BaseException: what it raised.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(answer)
    except RayError as error:
        raise raised(error) from None


def line(error: BaseException) -> str:
    """Returns the beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:300]
