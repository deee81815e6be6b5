"""Commands with `--image-size`: what they make, what a job remembers, what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.embed import embed, read_embeddings
from clip_jax.search import search
from clip_jax.train.config import Pretrained, TrainConfig, parse_config
from clip_jax.weights import save_parameters
from tests.models import SMALL_VIT, random_images, random_parameters
from tests.peers import peer

pytestmark = pytest.mark.usefixtures("compiles_quickly")

QUIET = {"progress": False, "batch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 32 pixels in patches of 8, pictures of two classes, and a job at 24 x 40."""
    root = tmp_path_factory.mktemp("sizes")
    save_parameters(SMALL_VIT, random_parameters(SMALL_VIT), root / "model")
    for i, pixels in enumerate(random_images(6, 60)):
        (root / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "pictures" / "ab"[i % 2] / f"{i}.png")
    options = {"image_size": (24, 40), "position_resize": "huggingface"}
    embed(root / "pictures", root / "model", root / "wide", **options, **QUIET)
    return root


def test_a_job_notes_its_size_and_goes_on_with_the_same_only(folder, capsys):
    job = json.loads((folder / "wide" / "job.json").read_text())
    assert job["identity"]["pixels"] == [24, 40]
    assert job["load"] == {"image_size": [24, 40], "position_resize": "huggingface"}
    command = ["embed", str(folder / "pictures"), "--out", str(folder / "wide"), "--model"]
    command += [str(folder / "model"), "--image-size"]
    assert main([*command, "24x40", "--position-resize", "huggingface"]) == 0
    capsys.readouterr()
    assert main([*command, "24x40"]) == 1  # by the other rule: other positions
    assert "- model: there" in capsys.readouterr().err
    assert main([*command, "40"]) == 1
    assert "- pixels: there [24, 40], here 40" in capsys.readouterr().err


def test_embeddings_are_those_of_the_model_at_that_size(folder):
    options = {"image_size": (24, 40), "position_resize": "huggingface"}
    model, preprocess = clip_jax.load(folder / "model", **options)
    rows = read_embeddings(folder / "wide").to_table().to_pydict()
    image = Image.open(folder / "pictures" / rows["key"][0])
    expected = clip_jax.Encoder(model, batch_size=1, normalize=True).images(
        [preprocess.pixels(image)]
    )
    np.testing.assert_allclose(rows["embedding"][0], expected[0], atol=1e-5)


def test_search_and_eval_load_the_model_as_the_job_did(folder, capsys):
    picture = folder / "pictures" / "a" / "0.png"
    assert search(folder / "wide", None, picture, 1)[0]["key"] == "a/0.png"
    assert search(folder / "wide", folder / "model", picture, 1)[0]["key"] == "a/0.png"
    with pytest.raises(ValueError, match="another model"):
        search(folder / "wide", None, picture, image_size=32)
    size = ["--image-size", "24x40", "--position-resize", "huggingface"]
    assert main(["search", str(folder / "wide"), str(picture), "--image", *size]) == 0
    assert main(["eval", "zeroshot", str(folder / "pictures"), "--json", "--model",
                 str(folder / "model"), *size]) == 0  # fmt: skip
    capsys.readouterr()
    assert main(["eval", "retrieval", str(folder / "wide"), "--model", str(folder / "model")]) == 1
    assert "another model" not in capsys.readouterr().err  # it is the texts that are missing


def test_a_job_of_the_models_own_size_is_described_as_ever(folder, tmp_path):
    embed(folder / "pictures", folder / "model", tmp_path / "out", **QUIET)
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert job["identity"]["pixels"] == 32 and "load" not in job


def test_a_size_for_a_model_that_is_loaded_already_is_refused(folder, tmp_path):
    model = clip_jax.load(folder / "model")[0]
    with pytest.raises(ValueError, match="image_size: .* loaded already"):
        embed(folder / "pictures", model, tmp_path / "out", image_size=40)


def test_classify_at_another_size(folder, capsys):
    command = ["classify", str(folder / "pictures" / "a" / "0.png"), "--labels", "a", "b", "--json"]
    command += ["--model", str(folder / "model")]
    found = []
    for size in ([], ["--image-size", "48"], ["--image-size", "24x40"]):
        assert main([*command, *size]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["scores"][0]["probability"])
    assert len(set(found)) == 3


@pytest.mark.parametrize("size", ["0", "-8", "24x", "x40", "24x0", "24 x 40", "big", "99999", "٣٢"])
def test_what_is_no_size_is_refused_before_anything_is_loaded(folder, capsys, size):
    with pytest.raises(SystemExit) as caught:
        main(["classify", "a.png", "--labels", "a", "--model", "none", f"--image-size={size}"])
    assert caught.value.code == 2
    assert "expected a side in pixels, such as 336" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-size", "36"], "--drop-remainder"),
        (["--image-size", "4"], "--image-size must be at least patch_size"),
        (["--position-resize", "open_clip"], "give it as --image-size"),
    ],
)
def test_sizes_that_the_model_cant_take_are_told_in_a_line(folder, capsys, options, message):
    picture = str(folder / "pictures" / "a" / "0.png")
    command = ["classify", picture, "--labels", "a", "--model", str(folder / "model"), *options]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


MINIMAL = {"out": "o", "data": {"train": "t"}, "run": {"batch_size": 2}}
HOW = {"image_size": 48, "position_resize": "huggingface"}


def test_training_starts_from_a_model_at_another_size():
    config = parse_config({**MINIMAL, "model": {"from": "m", **HOW}})
    assert config.model == Pretrained("m", image_size=48, position_resize="huggingface")
    assert not [name for name in config.identity() if name.startswith("model")]
    assert parse_config({**MINIMAL, "model": {"from": "m"}}).model == "m"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"from": "m", "image_size": "48"}, "image_size must be a whole number"),
        ({"from": "m", "image_size": [24, 40]}, "image_size must be a whole number"),
        ({"from": "m", "image_size": 48, "name": "n"}, "nothing else"),
    ],
)
def test_a_size_to_train_at_that_does_not_fit_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        parse_config({**MINIMAL, "model": model})


def test_a_model_is_trained_at_another_size(folder, shards, tmp_path):
    pytest.importorskip("grain")
    from clip_jax.train import train

    config = parse_config(
        {
            "out": str(tmp_path / "run"),
            "model": {"from": str(folder / "model"), **HOW},
            "data": {"train": shards, "num_threads": 1},
            "run": {"batch_size": 8},
            "optimizer": {"total_steps": 1, "warmup_steps": 0},
        }
    )
    assert isinstance(config, TrainConfig)
    trained, preprocess = clip_jax.load(train(config, progress=False))
    assert trained.config.vision.image_size == preprocess.image_size == 48


def test_training_refuses_a_model_whose_images_are_no_squares(folder, shards, tmp_path):
    pytest.importorskip("grain")
    from clip_jax.train import train

    clip_jax.save(clip_jax.load(folder / "model", image_size=(24, 40))[0], tmp_path / "wide")
    config = parse_config(
        {
            "out": str(tmp_path / "run"),
            "model": {"from": str(tmp_path / "wide")},
            "data": {"train": shards},
            "run": {"batch_size": 8},
            "optimizer": {"total_steps": 1, "warmup_steps": 0},
        }
    )
    with pytest.raises(ValueError, match="training crops squares .* images of 24 x 40"):
        train(config, progress=False)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["open_clip", "huggingface", "native"])
def test_parity_holds_at_another_size(tmp_path, capsys, kind):
    peer({"huggingface": "transformers"}.get(kind, "open_clip"))
    write = {"open_clip": to_open_clip, "huggingface": to_huggingface, "native": save_parameters}
    write[kind](SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "model")
    for size in ("48", "24x40")[: 1 if kind == "huggingface" else 2]:
        status = main(["parity", str(tmp_path / "model"), "--image-size", size, "--json"])
        result = json.loads(capsys.readouterr().out)
        assert status == 0 and result["ok"], result["first_difference"]
        (row,) = (row for row in result["rows"] if row["stage"] == "preprocessing")
        assert row["max_abs"] == 0


@pytest.mark.torch
def test_what_no_library_compares_at_another_size_is_a_line(tmp_path, capsys):
    peer("transformers")
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "model")
    assert main(["parity", str(tmp_path / "model"), "--image-size", "24x40"]) == 1
    assert "transformers' pixels are squares" in capsys.readouterr().err
    assert main(["parity", "ViT-B/32", "--image-size", "336"]) == 1
    assert "--image-size is for folders" in capsys.readouterr().err
