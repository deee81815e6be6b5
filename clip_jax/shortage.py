"""What the machine lacks, told apart from what is wrong with a file or a row."""

import errno

_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


def is_shortage(error: BaseException) -> bool:
    """Whether memory or open files have run out, be it only as the cause of `error`.

    Whoever leaves out what can't be read has to pass these on: with another limit, or on another
    machine, the same file is read.
    """
    return _shortage(error) is not None


def advice(error: BaseException) -> str:
    """What has run out, and what to do about it, in a line."""
    lacking = _shortage(error) or error
    if isinstance(lacking, OSError) and lacking.errno in _DESCRIPTORS:
        return "too many open files: raise the limit (ulimit -n), and run the same command again"
    return (
        f"the memory is not enough ({str(lacking).partition(chr(10))[0] or 'MemoryError'}): take a "
        "smaller batch or fewer rows at a time, or a machine with more"
    )


def _shortage(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*_DESCRIPTORS, errno.ENOMEM):
            return error
        # XLA's is a RuntimeError of its own.
        is_xla = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        if is_xla or isinstance(error, MemoryError):
            return error
        error = error.__cause__
    return None
