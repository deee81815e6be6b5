"""What no file and no row is to blame for, however the error is wrapped."""

import errno
import os

import pytest

from clip_jax.errors import Exhausted, Unreachable, exhausted, is_exhausted


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "ENOSPC", "EDQUOT"])
def test_what_the_machine_has_run_out_of_is_nobodys_fault(name):
    code = getattr(errno, name)
    error = OSError(code, os.strerror(code))
    assert is_exhausted(error)
    found = exhausted(error)
    assert isinstance(found, Exhausted) and isinstance(found, Unreachable) and ":" in str(found)


def test_what_led_to_an_error_counts_too():
    """Decoders and drivers make errors of their own kinds of the system's."""
    for raised in ("from", "context"):
        try:
            try:
                raise MemoryError
            except MemoryError as shortage:
                error = ValueError("can't decode")
                raise error from (shortage if raised == "from" else None)
        except ValueError as error:
            assert is_exhausted(error)


@pytest.mark.parametrize("error", [ValueError("x"), FileNotFoundError(errno.ENOENT, "x")])
def test_other_errors_are_the_files(error):
    assert exhausted(error) is None and not is_exhausted(error)
