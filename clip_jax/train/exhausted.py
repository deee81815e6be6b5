"""Errors that are the machine's: it has no more of something, whatever was to be read."""

import errno

_NUMBERS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What libraries say whose errors have no numbers.
_WORDS = ("RESOURCE_EXHAUSTED", "Too many open files", "Cannot allocate memory")


def exhausted(error: BaseException) -> str | None:
    """What the machine has no more of: descriptors or memory; None where it is something else."""
    if isinstance(error, MemoryError):
        return "Out of memory"
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return error.strerror
    return next((word for word in _WORDS if word in str(error)), None)
