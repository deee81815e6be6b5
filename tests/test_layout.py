"""The tests themselves: what they share has modules of its own, and what is promised is checked."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, and the names from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_file_of_tests_is_imported():
    imported = {path.name: imports_of(path) for path in Path(__file__).parent.glob("*.py")}
    assert len(imported) > 80
    tests = {k: [name for name in v if name.startswith("tests.test_")] for k, v in imported.items()}
    assert not {path: names for path, names in tests.items() if names}


def test_no_file_of_tests_is_longer_than_500_lines():
    lengths = {p.name: len(p.read_text().splitlines()) for p in Path(__file__).parent.glob("*.py")}
    assert not {name: length for name, length in lengths.items() if length > 500}


@pytest.mark.parametrize("package", ["clip_jax.nn", "clip_jax.backends"])
def test_the_shapes_of_every_module_are_executed(package):
    names = [package]
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        names.append(module.name)
    assert len(names) > 8
    kinds = {name: type(importlib.import_module(name).__spec__.loader) for name in names}
    assert not [name for name in names if not kinds[name].__module__.startswith("jaxtyping.")]
