"""Calls of the command line in this process."""

from collections.abc import Callable

import pytest

from clip_jax.cli import main

Run = Callable[..., tuple[int, str, list[str]]]


def runner(capsys: pytest.CaptureFixture[str], *command: str) -> Run:
    """Runs `clip-jax` in this process; gives its status, output and lines of errors.

    Args:
        capsys: pytest's.
        command: what stands in front of the arguments of each call.
    """

    def run(*argv: object) -> tuple[int, str, list[str]]:
        try:
            status = main([*command, *map(str, argv)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err.splitlines()

    return run
