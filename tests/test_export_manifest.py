"""A manifest that was changed by hand is refused, whichever field it was."""

import json
import random
import shutil

import pytest

from clip_jax import export
from clip_jax.errors import CheckpointError
from tests.models import TINY_VIT, small

DELETED = object()
WRONG = [
    DELETED,
    *(None, True, 0, -1, 3, 10**30, 1.5, float("nan"), "", "x", "../x", "a\0b"),
    *([], [1], ["x"], [[]], {}, {"a": 1}),
]
# Fields that make no difference to any embedding: the programs have their heads and activations in
# them, and the others only say how the folder was made.
NO_MATTER = {
    *("normalized", "calling_convention", "dtype", "versions"),
    *("config/vision/num_heads", "config/text/num_heads", "config/activation"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    export.export(small(TINY_VIT), folder, platforms=["cpu"])
    return folder


@pytest.fixture
def change(folder, tmp_path):
    """Replaces a field of a copy's manifest, by its path, and loads it."""
    copy = shutil.copytree(folder, tmp_path / "copy")

    def load(path: str, value) -> export.ExportedModel:
        document = json.loads((folder / "manifest.json").read_text())
        inner, (*names, last) = document, path.split("/")
        for name in names:
            inner = inner[int(name) if isinstance(inner, list) else name]
        if isinstance(inner, list):
            last = int(last)
        if value is DELETED:
            del inner[last]
        else:
            inner[last] = value
        (copy / "manifest.json").write_text(json.dumps(document))
        return export.load(copy)

    return load


def places(value, path=()):
    """Yields the path of every field, of lists the first entry's."""
    if path:
        yield "/".join(path)
    items = {"0": value[0]} if isinstance(value, list) else value
    for name, inner in items.items() if isinstance(items, dict) else ():
        yield from places(inner, (*path, name))


@pytest.mark.parametrize("count", [120, pytest.param(None, marks=pytest.mark.slow)])
def test_a_wrong_value_of_any_field_is_the_manifests_fault(folder, change, count):
    """It is told as such or makes no difference, and nothing else is raised."""
    document = json.loads((folder / "manifest.json").read_text())
    cases = [(place, value) for place in places(document) for value in WRONG]
    random.Random(0).shuffle(cases)
    accepted = set()
    for place, value in cases[:count]:
        try:
            change(place, value)
            accepted.add(place)
        except CheckpointError:
            pass
    # True is 1; and without a length and a size, the configuration has its defaults, these.
    equal = {f"config/text/{name}" for name in ("num_layers", "vocab_size", "context_length")}
    inside = {place for place in accepted if place.partition("/")[0] in NO_MATTER}
    assert accepted - inside <= NO_MATTER | equal | {"version"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mean", [0.5, 0.5, 0.5], "config and the other fields differ in mean"),
        ("std", [1, 1, 1], "config and the other fields differ in std"),
        ("config/embed_dim", 5, "differ in embed_dim"),
        ("config/vision/image_size", 64, "differ in image_size"),
        ("config/text/context_length", 16, "something else than its programs of config"),
        ("config/text/width", 12, "something else than its programs of config"),
        ("config/text/num_layers", 10**9, "something else than its programs of config"),
        ("platforms", ["cpu", "tpu"], "something else than its programs of platforms"),
        ("weights", "inside", "something else than its programs of weights"),
        ("image_input", "frames", "something else than its programs of image_input"),
        ("programs/text/input/shape", [4, "l"], "programs of programs.text"),
        ("config/activation", None, "is damaged .*activation must be one of"),
        ("files/0/name", "..", r"'\.\.' is no name of a file in this folder"),
    ],
)
def test_what_contradicts_the_programs_is_named(change, path, value, message):
    with pytest.raises(CheckpointError, match=message):
        change(path, value)


def test_no_program_is_read_whose_content_is_not_checked(folder, change):
    """A name that leads elsewhere, or to a file that the manifest doesn't list, is none."""
    outside = shutil.copy(folder / "image.stablehlo", folder.parent / "image.stablehlo")
    for name in (str(outside), "../image.stablehlo", "other.stablehlo"):
        with pytest.raises(CheckpointError, match="is damaged"):
            change("programs/image/file", name)
