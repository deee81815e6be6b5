"""What a command doesn't know is answered with that command's own help."""

import pytest

from tests.calls import runner


@pytest.mark.parametrize(
    ("argv", "help"),
    [
        (("embed", "a.png", "b.png", "--out", "x"), "clip-jax embed --help"),
        (("eval", "probe", "in", "--template", "x"), "clip-jax eval probe --help"),
        (("models", "--al1"), "clip-jax models --help"),
    ],
)
def test_unknown_arguments_name_the_subcommands_help(capsys, argv, help):
    status, _, (said,) = runner(capsys)(*argv)
    assert status == 2 and said.startswith("clip-jax: unrecognized arguments: ")
    assert said.endswith(f"; see {help}")
