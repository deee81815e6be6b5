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


def test_no_module_has_the_name_of_a_package_that_it_imports():
    """A type checker takes the file itself for the package where that isn't installed."""
    package = Path(__file__).parent.parent / "clip_jax"
    paths = [*package.rglob("*.py")]
    assert len(paths) > 200
    assert not [p for p in paths if p.stem in {name.split(".")[0] for name in imports_of(p)}]


@pytest.mark.parametrize("package", ["clip_jax.nn", "clip_jax.backends"])
def test_the_shapes_of_every_module_are_executed(package):
    names = [package]
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        names.append(module.name)
    assert len(names) > 8
    kinds = {name: type(importlib.import_module(name).__spec__.loader) for name in names}
    assert not [name for name in names if not kinds[name].__module__.startswith("jaxtyping.")]


# From the ground up: a room imports only those before it.
FLOORS = """
    errors messages memory globs file_stat resample bands jpeg2000 jpeg_scans bombs channels
    naming lazy version signals image_size config_fields pixel_config config geometry picture_faults
    reduced frames locks unfinished arrays
    attempts progress catalog siglip_catalog open_clip_architectures open_clip_catalog
    inputs adaptation nn towers shapes backends placement compilation
    storage replace byte_pairs tokenizer model_tokenizer sentence_piece
    preprocess picture_options convert preprocess_huggingface
    sources pages thumbnails weights loading encoder
    parity train embed search serve evaluate export compat
    cli
""".split()
# The names that have moved there warn for one release.
UPWARD = {("embed", "search")}


def rooms_imported() -> set[tuple[str, str]]:
    """Which room imports which, anywhere in its files."""
    root = Path(__file__).parents[1]
    found = set()
    for room in FLOORS:
        place = root / "convert" if room == "convert" else root / "clip_jax" / room
        files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
        for path in files:
            for name in imports_of(path):
                parts = name.split(".")
                if parts[0] == "clip_jax" and len(parts) > 1 and parts[1] in FLOORS:
                    found.add((room, parts[1]))
    return {(room, other) for room, other in found if room != other}


def test_every_module_has_its_floor():
    names = {
        module.name for module in pkgutil.iter_modules(importlib.import_module("clip_jax").__path__)
    }
    assert names - {"__main__", "data", "_version"} == set(FLOORS)


def test_imports_go_downward():
    upward = {
        (room, other)
        for room, other in rooms_imported()
        if FLOORS.index(other) >= FLOORS.index(room)
    }
    assert upward == UPWARD


def test_the_mathematics_is_read_in_an_hour():
    root = Path(__file__).parents[1] / "clip_jax" / "nn"
    assert sum(len(path.read_text().splitlines()) for path in root.glob("*.py")) <= 1480
