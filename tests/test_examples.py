"""The programs in examples/ run as their docstrings say."""

import gzip
import importlib
import io
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from tests.models import SMALL_RESNET, fresh
from tests.pictures import COLOURS

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten pictures of each of three colours, sorted into folders."""
    root = tmp_path_factory.mktemp("examples") / "pictures"
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            noisy = np.array(colour) + rng.normal(0, 15, (50, 70, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example in this process and gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    clip_jax.save(fresh(SMALL_RESNET), path)
    return path


def test_the_bundled_model_names_the_drawings_that_it_was_not_trained_on(capsys):
    from clip_jax.cli import main

    names = {
        "pear": "pear",
        "lady-beetle": "beetle",
        "oncoming-bus": "bus",
        "crescent-moon": "moon",
        "wine-glass": "glass of wine",
    }
    pictures = [str(EXAMPLES / "emoji" / "pictures" / f"{picture}.png") for picture in names]
    command = ["classify", *pictures, "--labels", *names.values(), "--model", "emoji", "--json"]
    assert main(command) == 0
    found = [result["scores"][0]["label"] for result in json.loads(capsys.readouterr().out)]
    assert found == list(names.values())


@pytest.fixture
def emoji(monkeypatch):
    """The modules of the emoji recipe, which import each other from their own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "emoji"))
    return importlib.import_module


def test_a_name_is_no_keyword_of_another_emoji(tmp_path, emoji):
    entries = (
        ("1F415", "dog", ["animal", "dogs", "pet"], 2),
        ("1F9AE", "guide dog", ["dog", "guide", "pet"], 1),
        ("1F4A9-FE0F", "pile of poo", [], 3),
    )
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "data.json").write_text(
        json.dumps(
            [
                {"hexcode": code, "label": label, "tags": tags, "order": order, "group": 3}
                for code, label, tags, order in entries
            ]
        )
    )
    guide, dog, poo = emoji("names").concepts(tmp_path)
    assert (guide.keywords, dog.keywords) == (("guide", "pet"), ("animal", "dogs", "pet"))
    assert guide.captions == ["guide dog"] * 6 + ["guide", "pet"]
    assert (poo.code, poo.captions) == ("1F4A9", ["pile of poo"])


def test_drawings_are_matched_by_what_names_one_concept_alone(tmp_path, emoji):
    known = [
        emoji("names").Concept(code, name, (), True)
        for code, name in (("1F436", "dog face"), ("1F415", "dog"), ("1F43A", "wolf"))
    ]
    shortcodes = tmp_path / "names" / "en" / "shortcodes"
    shortcodes.mkdir(parents=True)
    (shortcodes / "a.json").write_text('{"1F436": ["dog", "puppy"], "1F415": "hound"}')
    (shortcodes / "b.json").write_text('{"1F415": ["dog_2", "beast"], "1F43A": "beast"}')
    codes = emoji("names").codes_by_name(tmp_path / "names", known)
    icons = {
        name: {"body": f'<path id="{name}" fill="currentColor"/>'}
        for name in (
            "dog-face",
            "pup-py",
            "beast",
            "hound-01",
            "hound-2",
            "wolf-2",
            "cat",
            "wolf-line",
        )
    }
    icons["dog-face"]["width"] = 24
    package = tmp_path / "package"
    package.mkdir()
    (package / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32}))

    iconify = emoji("drawings").iconify
    first, second, lines = (iconify(package, codes, variant) for variant in ("1", "2", "line"))
    # "beast" may be either of two; of several drawings of one concept the last one stays.
    assert {code: re.findall('id="(.*?)"', svg) for code, svg in first.items()} == {
        "1F436": ["pup-py"],
        "1F415": ["hound-01"],
    }
    assert 'viewBox="0 0 32 32"' in first["1F436"] and 'fill="black"' in first["1F436"]
    assert {code: re.findall('id="(.*?)"', svg) for code, svg in second.items()} == {
        "1F415": ["hound-2"],
        "1F43A": ["wolf-2"],
    }
    assert list(lines) == ["1F43A"]


def test_penned_drawings_have_black_lines_and_keep_their_colours_or_lose_them(tmp_path, emoji):
    drawings = emoji("drawings")
    document = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40">'
        '<rect x="10" y="10" width="20" height="20" fill="#ff0000"/></svg>'
    )
    path = tmp_path / "square.svg"
    path.write_text(document)
    for fill, inside in ((None, (255, 0, 0)), ("#fff", (255, 255, 255))):
        for drawing in (document, path):
            (penned,) = drawings.penned({"1F7E5": drawing}, fill=fill).values()
            with Image.open(io.BytesIO(drawings.rendered(penned))) as image:
                assert image.getpixel((48, 48)) == (*inside, 255)
                assert image.getpixel((24, 48)) == (0, 0, 0, 255)
                assert image.getpixel((2, 2))[3] == 0
    with pytest.raises(ValueError, match="must have a viewBox"):
        drawings.penned({"1F7E5": "<svg></svg>"})


def test_tinted_drawings_have_their_lines_in_black_and_one_colour_within(tmp_path, emoji):
    drawings = emoji("drawings")
    ring = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48">'
        '<circle cx="24" cy="24" r="20" fill="none" stroke="#777" stroke-width="4"/></svg>'
    )
    path = tmp_path / "ring.svg"
    path.write_text(ring)
    by_vector = drawings.tinted({"1F7E0": ring, "1F7E1": path})
    lines = Image.new("RGBA", (96, 96), (255, 255, 255, 255))
    lines.paste((0, 0, 0, 255), (0, 0, 8, 96))
    by_picture = drawings.tinted({"1F7E0": lines})
    for found in (*by_vector.values(), *by_picture.values()):
        *color, opacity = found.getpixel((48, 48))
        assert max(color) == 255 and max(color) - min(color) > 150 and opacity == 255
        assert found.getpixel((3, 48)) == (0, 0, 0, 255)
    for found in by_vector.values():
        assert found.getpixel((2, 2))[3] == 0
    # The colour is the drawing's, whatever style it is in.
    inside = [found["1F7E0"].getpixel((48, 48)) for found in (by_vector, by_picture)]
    assert inside[0] == inside[1] != by_vector["1F7E1"].getpixel((48, 48))


def test_what_recipes_are_chosen_by_is_trained_on_in_no_style_of_the_same_artists(emoji):
    split = emoji("prepare").split
    assert split(0, "google") == "choose"
    assert split(0, "google-2017") is split(0, "google-penned") is None
    assert split(0, "twitter") == split(0, "fluent-flat") == split(1, "google") == "train"
    assert split(30, "fluent-modern") == "choose" and split(30, "fluent-3d") is None
    assert {split(i, "openmoji") for i in range(60)} == {"test"}


def test_zero_shot_predicts_every_picture_of_a_folder(run, folder, model):
    out = run("zero_shot.py", folder, "--model", model)
    assert out.count("Top predictions:") == 30
    assert re.search(r"Right: \d+ of 30$", out.strip())
    block = out.split("Top predictions:")[1]
    percents = [float(p) for p in re.findall(r"([\d.]+)%", block)]
    assert len(percents) == 3 and percents == sorted(percents, reverse=True)
    assert sum(percents) == pytest.approx(100, abs=0.02)


def test_zero_shot_predicts_one_picture(run, folder, model):
    out = run("zero_shot.py", folder / "red" / "3.png", "--model", model)
    assert out.count("Top predictions:") == 1
    assert all(f"{name}: " in out for name in COLOURS)


def test_linear_probe_separates_colours(run, folder):
    """Features tell colours apart; a probe that mixed up its rows would not."""
    out = run("linear_probe.py", folder, "--model", "emoji", "--batch-size", 7)
    train, test = (float(p) for p in re.findall(r"accuracy: ([\d.]+)%", out))
    assert train >= 95 and test >= 95


def test_hidden_folders_are_no_classes(run, folder, model, tmp_path):
    for name in COLOURS:
        (tmp_path / name).mkdir()
        for i in range(5):
            shutil.copy(folder / name / f"{i}.png", tmp_path / name)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png").write_text("no picture")
    out = run("zero_shot.py", tmp_path, "--model", model)
    assert out.count("Top predictions:") == 15 and "ipynb" not in out
    assert "Test accuracy" in run("linear_probe.py", tmp_path, "--model", "emoji")


def test_a_probe_without_pictures_to_test_says_so(run, model, tmp_path):
    for name, color in COLOURS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), color).save(tmp_path / name / "0.png")
    with pytest.raises(SystemExit, match="no class has five pictures"):
        run("linear_probe.py", tmp_path, "--model", model)


def test_fashion_mnist_becomes_class_folders(run, tmp_path):
    rng = np.random.default_rng(0)
    for file in ("train", "t10k"):
        images, labels = (
            rng.integers(0, 256, (40, 28, 28), np.uint8),
            np.arange(40, dtype="u1") % 10,
        )
        for kind, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            data = gzip.compress(bytes(header) + array.tobytes())
            (tmp_path / f"{file}-{kind}-ubyte.gz").write_bytes(data)
    run("fashion_mnist.py", tmp_path / "out", "--source", tmp_path, "--train", 3, "--test", 2)
    found = sorted(path.relative_to(tmp_path / "out") for path in tmp_path.glob("out/*/*/*.png"))
    assert len(found) == 50 and str(found[-1]) == "train/trousers/00021.png"
    with Image.open(tmp_path / "out" / "test" / "boot" / "00019.png") as image:
        assert np.array_equal(image, 255 - images[19])
