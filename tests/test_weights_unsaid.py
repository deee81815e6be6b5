"""What a bare file of weights doesn't say is given, lies beside it, or is asked for."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax.catalog import CATALOG
from clip_jax.cli import main
from clip_jax.convert import to_huggingface, to_open_clip, to_pytorch
from clip_jax.errors import CheckpointError
from clip_jax.pixel_config import PixelConfig
from clip_jax.weights import load, load_text_model, load_vision_model, read_model
from tests.evaluation import write_pictures
from tests.model_files import VIT
from tests.models import SMALL_VIT, random_images, random_parameters

# Heads of 32 in the vision tower, and exact GELU: neither can be seen in the arrays.
OTHERS = dataclasses.replace(
    SMALL_VIT,
    vision=dataclasses.replace(SMALL_VIT.vision, num_heads=2),
    activation="gelu",
    pixels=PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)


@pytest.fixture
def bare(tmp_path):
    """A bare file of a model that differs from OpenAI's in what no array says."""
    path = tmp_path / "bare" / "weights.safetensors"
    path.parent.mkdir()
    save_file(to_pytorch(OTHERS, random_parameters(OTHERS)), path)
    return path


def features(model):
    images = random_images(2, 32).astype(np.float32) / 255  # whatever the pixels' mean
    return np.asarray(model.encode_image(images))


def pictures_in(folder):
    write_pictures(folder, 1)
    return folder


@pytest.fixture(scope="module")
def expected():
    return features(clip_jax.from_parameters(OTHERS, random_parameters(OTHERS)))


def test_each_thing_that_is_not_said_is_asked_for(bare):
    with pytest.warns(UserWarning, match="quick_gelu and heads 64 wide") as said:
        assert load(bare)[0].config.activation == "quick_gelu"
    for text in ("the activation and the attention heads", "activation=", "num_heads=", "(1, 1)"):
        assert text in str(said[0].message)
    with pytest.warns(UserWarning, match="doesn't say the attention heads of") as said:
        load(bare, activation="gelu")
    assert "activation=" not in str(said[0].message)
    with pytest.warns(UserWarning, match="doesn't say the activation of") as said:
        load(bare, num_heads=2)
    assert "num_heads=" not in str(said[0].message)


def test_heads_are_not_assumed_for_a_width_that_has_others(tmp_path):
    wide = dataclasses.replace(
        SMALL_VIT, vision=dataclasses.replace(SMALL_VIT.vision, width=1280, num_heads=16)
    )
    save_file(to_pytorch(wide, random_parameters(wide)), tmp_path / "h.safetensors")
    with pytest.raises(CheckpointError, match="no model of width 1280 has heads 64 wide") as caught:
        load(tmp_path / "h.safetensors", activation="gelu")
    assert "num_heads= (--num-heads)" in str(caught.value)
    model, _ = load(tmp_path / "h.safetensors", activation="gelu", num_heads=16)
    assert model.config == dataclasses.replace(wide, activation="gelu")


def test_what_is_given_is_taken(bare, expected):
    for heads in (2, (2, 1)):
        model, _ = load(bare, activation="gelu", num_heads=heads)
        assert np.array_equal(features(model), expected)
    assert load(bare, activation="gelu", num_heads=(2, 4))[0].config.text.num_heads == 4
    text, _ = load_text_model(bare, activation="gelu", num_heads=(2, 4))
    assert (text.config.num_heads, text.config.activation) == (4, "gelu")
    vision, _ = load_vision_model(bare, activation="gelu", num_heads=2)
    assert (vision.config.num_heads, vision.config.activation) == (2, "gelu")
    for one in (load_text_model, load_vision_model):
        with pytest.warns(UserWarning, match="the activation and the attention heads"):
            one(bare)


@pytest.mark.parametrize("heads", [0, -1, True, 2.0, (1, 2, 3), (1, 0), "2"])
def test_heads_that_are_no_whole_numbers_are_refused(bare, heads):
    with pytest.raises(ValueError, match="num_heads must be a positive whole number"):
        load(bare, activation="gelu", num_heads=heads)


def test_heads_that_do_not_divide_the_width_are_refused(bare):
    with pytest.raises(CheckpointError, match="num_heads must divide the width. Got 3 and 64"):
        load(bare, activation="gelu", num_heads=3)


@pytest.mark.parametrize("write", [to_open_clip, to_huggingface, clip_jax.weights.save_parameters])
def test_a_configuration_beside_a_file_says_it(bare, expected, tmp_path, write):
    write(OTHERS, random_parameters(OTHERS), tmp_path / "folder")
    for path in (tmp_path / "folder").glob("*.json"):
        path.rename(bare.parent / path.name)
    model, preprocess = load(bare)
    assert (model.config.activation, model.config.vision.num_heads) == ("gelu", 2)
    assert np.array_equal(features(model), expected)
    assert preprocess.config.mean == (0.5, 0.5, 0.5)
    # What is given wins.
    config = load(bare, activation="quick_gelu", num_heads=(4, 2))[0].config
    assert (config.vision_activation, config.text_activation) == ("quick_gelu", "quick_gelu")
    assert (config.vision.num_heads, config.text.num_heads) == (4, 2)


def test_a_configuration_of_another_model_beside_a_file_is_refused(bare, tmp_path):
    other = dataclasses.replace(OTHERS, embed_dim=24)
    clip_jax.weights.save_parameters(other, random_parameters(other), tmp_path / "other")
    (tmp_path / "other" / "config.json").rename(bare.parent / "config.json")
    with pytest.raises(
        CheckpointError, match=r"does not fit config.json, which lies beside it"
    ) as e:
        load(bare)
    assert "model that config.json describes" in str(e.value) and "model_cfg" not in str(e.value)
    load(bare, activation="gelu", num_heads=2)
    (bare.parent / "config.json").write_text('{"vision": {"type": "vit"}}')
    with pytest.raises(CheckpointError, match=r"config.json, beside weights.safetensors: "):
        load(bare)
    (bare.parent / "config.json").write_text('{"model_type": "bert"}')  # says nothing of it
    with pytest.warns(UserWarning, match="the activation and the attention heads"):
        load(bare)


def test_a_file_with_the_checksum_of_an_official_one_is_known(tmp_path, monkeypatch):
    path = tmp_path / "renamed.safetensors"
    save_file(to_pytorch(VIT, random_parameters(VIT)), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = dataclasses.replace(CATALOG["ViT-B/32"], name="tiny", config=VIT, sha256=digest)
    monkeypatch.setitem(CATALOG, "tiny", entry)
    assert load(path)[0].config == VIT
    monkeypatch.setitem(CATALOG, "tiny", dataclasses.replace(entry, sha256="0" * 64))
    with pytest.warns(UserWarning, match="none of OpenAI's own files"):
        load(path)


@pytest.mark.parametrize("option", [{"activation": "gelu"}, {"num_heads": 2}])
def test_a_model_that_says_its_own_takes_no_other(option, tmp_path):
    name = next(iter(option))
    for one in (load, load_text_model, load_vision_model):
        with pytest.raises(ValueError, match=f"{name} is only for .pt and .safetensors files"):
            one("emoji", **option)
    clip_jax.save(clip_jax.load("emoji")[0], tmp_path / "native")
    with pytest.raises(ValueError, match=f"{name} is only for files of weights"):
        read_model(tmp_path / "native", **option)
    model = clip_jax.load("emoji")[0]
    with pytest.raises(ValueError, match=f"{name}: for models by name or path"):
        clip_jax.embed.embed(pictures_in(tmp_path / "p"), model, tmp_path / "out", **option)


# ---- in every room ------------------------------------------------------------------------------


@pytest.fixture
def rooms(bare, tmp_path):
    """Each command that takes a model, with the bare file."""
    pictures = pictures_in(tmp_path / "pictures")
    picture = next(pictures.rglob("*.png"))
    return {
        "classify": ["classify", picture, "--labels", "a", "b", "--model", bare],
        "embed": ["embed", pictures, "--out", tmp_path / "out", "--model", bare],
        "zeroshot": ["eval", "zeroshot", pictures, "--model", bare],
        "probe": ["eval", "probe", pictures, "--test", pictures, "-C", "1", "--model", bare],
        "convert": ["convert", bare, tmp_path / "native"],
    }


@pytest.mark.filterwarnings("default:.*doesn't say the activation")
@pytest.mark.filterwarnings("ignore:.* is fitted and tested")
def test_every_command_asks_for_it_and_takes_it(rooms, capsys):
    for name, command in rooms.items():
        words = list(map(str, command))
        options = ["--activation", "gelu", "--num-heads", "2,1"]
        assert main([*words, *options]) == 0, (name, capsys.readouterr().err)
        assert "--activation" not in capsys.readouterr().err
        # What is there is another model's.
        words = [word + "2" if word.endswith(("/out", "/native")) else word for word in words]
        assert main(words) == 0, name
        said = capsys.readouterr().err
        assert "warning: " in said and "--activation" in said and "--num-heads" in said, name


@pytest.mark.parametrize("heads", ["0", "a", "1,2,3", "", "2,", "-1"])
def test_heads_on_the_command_line_are_one_or_two_numbers(heads, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["classify", "x.png", "--labels", "a", f"--num-heads={heads}"])
    assert caught.value.code == 2
    assert "16,12" in capsys.readouterr().err


def test_a_job_remembers_how_its_model_was_loaded(bare, tmp_path):
    pictures, out = pictures_in(tmp_path / "pictures"), tmp_path / "out"
    told = {"activation": "gelu", "num_heads": (2, 1)}
    clip_jax.embed.embed(pictures, bare, out, progress=False, **told)
    assert json.loads((out / "job.json").read_text())["load"] == {
        "activation": "gelu",
        "num_heads": [2, 1],
    }
    picture = next(pictures.rglob("*.png"))
    hits = clip_jax.search.search(out, None, picture, 1)
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    again = clip_jax.load(bare, **told)[0]
    clip_jax.save(again, tmp_path / "native")  # the model may be a folder meanwhile
    assert clip_jax.search.search(out, tmp_path / "native", picture, 1)[0]["key"] == hits[0]["key"]


def test_the_reference_is_compared_with_what_it_can_compute_only(bare, capsys):
    pytest.importorskip("torch")
    from tests import reference

    if not reference.available():
        pytest.skip("the PyTorch reference is not installed")
    assert main(["parity", str(bare), "--activation", "gelu", "--num-heads", "2"]) == 1
    assert "the reference has no" in capsys.readouterr().err


def test_training_starts_from_a_bare_file(bare):
    from clip_jax.train.config import Pretrained, parse_config

    document = {
        "out": "run",
        "data": {"train": "x.tar"},
        "run": {"batch_size": 2},
        "optimizer": {"total_steps": 1, "warmup_steps": 1},
        "model": {"from": str(bare), "activation": "gelu", "num_heads": [2, 1]},
    }
    config = parse_config(document)
    assert config.model == Pretrained(str(bare), "gelu", (2, 1))
    assert "model" not in config.identity()
    document["model"]["num_heads"] = "2"
    with pytest.raises(ValueError, match=r"\[model\] num_heads must be a whole number or a list"):
        parse_config(document)
    document["model"] = {"from": "emoji", "embed_dim": 2}
    with pytest.raises(ValueError, match="nothing else, but for the activation and num_heads"):
        parse_config(document)
