"""An evaluation of embeddings is of pictures that became pixels in one way."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import Columns, PictureOptions, embed
from clip_jax.evaluate import probe, retrieval, zeroshot
from tests.calls import runner
from tests.evaluation import shared_encoders
from tests.models import SMALL_VIT, small

pytest.importorskip("pyarrow")
PAD = PictureOptions(fit="pad")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Wide pictures with labels and captions, embedded cropped, padded and rotated."""
    root = tmp_path_factory.mktemp("alike")
    clip_jax.save(small(SMALL_VIT), root / "model")
    rng = np.random.default_rng(0)
    with open(root / "table.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "caption"])
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (20, 60, 3), np.uint8)).save(root / f"{i}.png")
            rows.writerow([f"{i}.png", "ab"[i % 2], f"number {i}"])
    options = {"what": "both", "columns": Columns(others=("label",)), "progress": False}
    source = root / "table.csv", root / "model"
    with shared_encoders():
        embed(*source, root / "cropped", batch_size=8, **options)
        embed(*source, root / "padded", batch_size=8, pictures=PAD, **options)
        embed(*source, root / "rotated", batch_size=8, exif_transpose=True, **options)
        yield root


@pytest.mark.parametrize("evaluate", [zeroshot, retrieval, probe])
@pytest.mark.parametrize(("job", "asked"), [("cropped", PAD), ("padded", PictureOptions("squash"))])
def test_embeddings_are_refused_where_other_pixels_are_asked_for(data, evaluate, job, asked):
    with pytest.raises(ValueError, match=f"{job} was embedded with .* asks for fit"):
        evaluate(data / job, data / "model", pictures=asked, progress=False)


def test_the_command_line_refuses_them_in_one_line(data, capsys):
    run = runner(capsys, "eval")
    status, _, said = run("zeroshot", data / "cropped", "--fit", "pad")
    assert status == 1
    assert "fit 'pad', which embeddings can't be given any more" in said[-1]


@pytest.mark.parametrize("pictures", [None, PAD])
def test_a_probe_of_embeddings_is_tested_on_pixels_that_were_made_as_theirs(data, pictures):
    sources = data / "padded", data / "model"
    options = {"C": 1e6, "pictures": pictures, "progress": False}
    tested = probe(*sources, test=data / "table.csv", **options)
    with pytest.warns(UserWarning, match="is fitted and tested, .* by heart"):
        again = probe(*sources, test=data / "padded", **options)
    assert tested.scores.top1 == again.scores.top1 == 1


@pytest.mark.parametrize(
    ("source", "test", "message"),
    [
        ("cropped", "padded", "cropped was embedded with pictures as .*padded with fit"),
        ("rotated", "table.csv", "rotated were rotated .*table.csv are not"),
        ("table.csv", "rotated", "rotated were rotated .*table.csv are not"),
    ],
)
def test_a_probe_is_refused_where_its_sources_differ_in_their_pixels(data, source, test, message):
    with pytest.raises(ValueError, match=message):
        probe(data / source, data / "model", test=Path(data, test), C=1.0, progress=False)


def test_the_embeddings_of_class_folders_are_not_sent_after_columns_that_folders_lack(data):
    for name in "ab":
        (data / "folders" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(data / "folders" / name / "0.png")
    embed(data / "folders", data / "model", data / "of-folders", batch_size=8, progress=False)
    with pytest.raises(ValueError, match="has no columns to take along: give .*folders itself"):
        zeroshot(data / "of-folders", data / "model", progress=False)


def test_a_report_says_how_its_pictures_became_pixels(data, tmp_path, capsys):
    run = runner(capsys, "eval")
    said = ["--model", data / "model", "--json", "--report"]
    for name, more in (("table.csv", ["--fit", "pad"]), ("padded", []), ("cropped", [])):
        pixels = {} if name == "cropped" else {"fit": "pad"}
        _, printed, _ = run("zeroshot", data / name, *said, tmp_path / name, *more)
        assert json.loads(printed)["pixels"] == pixels
        page = (tmp_path / name / "report.html").read_text()
        assert ("<dt>Pixels</dt><dd><bdi>fit pad</bdi></dd>" in page) == bool(pixels)
