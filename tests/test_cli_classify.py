"""`clip-jax classify`: damaged weights are named, and batches are not padded in vain."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import main
from clip_jax.encoder import Encoder
from clip_jax.weights import save_parameters
from tests.models import SMALL_VIT, random_images, random_parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A sound model, damaged ones, and forty pictures."""
    root = tmp_path_factory.mktemp("classify")
    save_parameters(SMALL_VIT, random_parameters(SMALL_VIT), root / "sound")
    for name, path, number in (
        ("image-nan", ("visual", "proj"), np.nan),
        ("image-zero", ("visual", "proj"), 0),
        ("text-nan", ("text_projection",), np.nan),
        ("text-zero", ("text_projection",), 0),
        ("scale", ("logit_scale",), np.inf),
    ):
        params = random_parameters(SMALL_VIT)
        *parents, last = path
        tree = params
        for parent in parents:
            tree = tree[parent]
        tree[last] = np.full_like(tree[last], number)
        save_parameters(SMALL_VIT, params, root / name)
    for i, pixels in enumerate(random_images(40, 32)):
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    return root


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("image-nan", "image-nan gives values that are not finite for 00.png: its weights are"),
        ("image-zero", "image-zero gives values that are not finite for 00.png: its weights are"),
        ("text-nan", "text-nan gives values that are not finite for the label 'dog': its weights"),
        (
            "text-zero",
            "text-zero gives values that are not finite for the label 'dog': its weights",
        ),
        ("scale", "the model's logit scale is not finite"),
    ],
)
def test_damaged_weights_are_told_in_a_line(folder, monkeypatch, capsys, model, expected):
    monkeypatch.chdir(folder)
    assert main(["classify", "00.png", "01.png", "--labels", "dog", "cat", "--model", model]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"clip-jax: {expected}") and err.count("\n") == 1
    assert "damaged, get them again" in err


@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (9, [9]), (33, [32, 1])])
def test_pictures_fill_their_batches(folder, monkeypatch, capsys, count, batches):
    monkeypatch.chdir(folder)
    made, sizes = Encoder._program, []

    def program(self, features, rows):
        sizes.append(len(rows))
        return made(self, features, rows)

    monkeypatch.setattr(Encoder, "_program", program)
    pictures = sorted(path.name for path in folder.glob("*.png"))[:count]
    options = ["--labels", "dog", "cat", "--model", "sound", "--json"]
    assert main(["classify", *pictures, *options]) == 0
    assert [each["image"] for each in json.loads(capsys.readouterr().out)] == pictures
    assert sizes == batches


@pytest.mark.filterwarnings("default:one class alone")
def test_one_label_alone_is_told_to_mean_nothing(capsys):
    picture = str(Path(__file__).parent.parent / "examples/emoji/pictures/pear.png")
    for labels, told in ((["pear"], True), (["pear", "moon"], False)):
        assert main(["classify", picture, "--labels", *labels, "--model", "emoji", "--json"]) == 0
        assert ("one class alone always has 100%" in capsys.readouterr().err) == told
