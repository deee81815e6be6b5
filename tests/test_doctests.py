"""Examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def examples() -> dict[str, int]:
    """The modules that have examples, with how many."""
    found = {}
    for folder, package in (("clip_jax", "clip_jax"), ("convert", "clip_jax.convert")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if count := sum(x.lstrip().startswith(">>> ") for x in path.read_text().splitlines()):
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join([package, *(name for name in inner if name != "__init__")])] = count
    return found


COUNTS = examples()


@pytest.mark.parametrize("name", COUNTS)
def test_examples_in_docstrings_give_what_they_say(name):
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    assert sum(len(test.examples) for test in tests) == COUNTS[name]  # so none is overlooked
    runner, said = doctest.DocTestRunner(), []
    for test in tests:
        runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
