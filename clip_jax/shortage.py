"""What the machine lacks, told apart from what is wrong with a file or a row."""

import errno

_LACKING = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def is_shortage(error: BaseException | None) -> bool:
    """Whether memory or open files have run out, be it only as the cause of `error`.

    Whoever leaves out what can't be read has to pass these on: with another limit, or on another
    machine, the same file is read.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _LACKING:
            return True
        # XLA's is a RuntimeError of its own.
        is_xla = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if is_xla or isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def advice(error: BaseException) -> str:
    """What ran out, and what to do about it, in a line."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (ulimit -n), and run the same command again"
    return (
        f"the memory is not enough ({str(error).partition(chr(10))[0] or type(error).__name__}): "
        "take a smaller batch or fewer rows at a time, or a machine with more"
    )
