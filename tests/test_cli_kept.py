"""Ctrl-C ends every command that writes or computes with what it leaves and how to go on."""

import argparse
from collections.abc import Iterator

import pytest

from clip_jax.cli.dispatch import _parser


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, object]]:
    """The commands below a parser, and what each says when it is interrupted."""
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not below:
        yield name, parser.get_default("kept")
    for action in below:
        for word, found in action.choices.items():
            yield from commands(found, f"{name} {word}".strip())


# It prints a list, at once.
SAID = [(name, kept) for name, kept in commands(_parser()) if name != "models"]


@pytest.mark.parametrize(("name", "kept"), SAID, ids=[name for name, _ in SAID])
def test_an_interrupted_command_says_what_it_leaves_and_that_it_begins_again(name, kept):
    assert isinstance(kept, str) and "the same command" in kept
