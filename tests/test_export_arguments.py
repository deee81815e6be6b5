"""What is asked of an export is checked before anything is traced or written."""

import dataclasses
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax import export
from clip_jax.convert import to_huggingface, to_pytorch
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.nn import parameters
from clip_jax.sentence_piece import SentencePieceTokenizer
from tests.calls import runner
from tests.models import SMALL_VIT, relative_error, small
from tests.sentence_pieces import siglip_model


def refused(model, folder, error, message, **options) -> None:
    with pytest.raises(error, match=message):
        export.export(model, folder / "out", **{"platforms": ["cpu"], **options})
    assert not os.path.lexists(folder / "out")


@pytest.mark.parametrize("batch", [True, 0, 2**31, 10**30, 1.0, "3", [1]], ids=repr)
def test_a_batch_is_a_whole_number_that_jax_can_count(model, tmp_path, batch):
    refused(model, tmp_path, ValueError, "a whole number from 1 to 2,147,483,647", batch=batch)


@pytest.mark.parametrize(
    "size",
    [(0, 5), (-1, 5), (1,), (1, 2, 3), "90x160", 90, (90.0, 160), (True, 5), (10**9, 10**9)],
    ids=repr,
)
def test_a_frame_has_a_height_and_a_width(model, tmp_path, size):
    message = "frame_size must be a height and a width in whole pixels, 1 to 99,999 each. Got"
    refused(model, tmp_path, ValueError, message, image_input="frames", frame_size=size)


@pytest.mark.parametrize("dtype", ["nope", "float64"])
def test_a_dtype_that_there_isnt_is_told_with_those_there_are(model, tmp_path, dtype):
    message = "dtype must be float32, bfloat16 or float16. Got"
    refused(model, tmp_path, ValueError, message, dtype=dtype)


@pytest.mark.parametrize("platforms", [None, 5, ("cpu", None), [["cpu"]]], ids=repr)
def test_platforms_are_names(model, tmp_path, platforms):
    refused(model, tmp_path, ValueError, "platforms must be some of", platforms=platforms)


@pytest.mark.parametrize("platforms", ["cpu", iter(["cpu"])], ids=["a string", "an iterator"])
def test_a_platform_by_itself_is_not_taken_letter_by_letter(model, tmp_path, platforms):
    export.export(model, tmp_path / "out", platforms=platforms, batch=np.int64(2))
    exported = export.load(tmp_path / "out")
    assert exported.manifest.platforms == ("cpu",) and exported.batch_size == 2


@pytest.mark.parametrize("what", ["emoji", None, 5], ids=repr)
def test_only_a_loaded_model_is_written(tmp_path, what):
    refused(what, tmp_path, TypeError, "model must be one of both towers, as clip_jax.load")
    for write in (export.export_onnx, clip_jax.save):
        with pytest.raises(TypeError, match="model must be one of both towers, as clip_jax.load"):
            write(what, tmp_path / "out")


def test_a_tower_alone_is_not_exported(model, tmp_path):
    refused(model.visual, tmp_path, TypeError, "Got VisionTransformer")


@pytest.mark.parametrize(
    "what", [5, "spiece.model", clip_jax.tokenize], ids=["number", "name", "function"]
)
def test_what_is_no_tokenizer_is_refused(model, tmp_path, what):
    message = "tokenizer must be one that clip_jax.load_tokenizer returns"
    refused(model, tmp_path, TypeError, message, tokenizer=what)
    with pytest.raises(TypeError, match=message):
        clip_jax.save(model, tmp_path / "out", tokenizer=what)


def test_another_models_tokenizer_is_not_written(model, tmp_path):
    """Its ids would be words of this one, too, but others."""
    pytest.importorskip("sentencepiece")
    tokenizer = SentencePieceTokenizer(16, "spiece.model", siglip_model(), "siglip", 1)
    message = "spiece.model has 400 ids, expected the 49,408 of the model"
    refused(model, tmp_path, ValueError, message, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        clip_jax.save(model, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        to_huggingface(model.config, parameters(model), tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_cleaning_that_the_folder_does_not_keep_is_refused(model, tmp_path):
    """Its strings would have other ids there than from the tokenizer that was given."""
    tokenizer = Tokenizer(77, "huggingface")
    refused(model, tmp_path, ValueError, "cleaned as OpenAI's", tokenizer=tokenizer)


def test_a_link_that_leads_to_itself_is_no_exported_model(model, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileExistsError, match="loop exists and is no exported model"):
        export.export(model, tmp_path / "loop", platforms=["cpu"])
    assert os.listdir(tmp_path) == ["loop"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", 2**31], "batch must be a whole number from 1 to 2,147,483,647"),
        (["--dtype", "float16"], "TPUs don't compute in float16: give bfloat16, or platforms"),
    ],
)
def test_the_command_says_it_before_it_looks_for_the_model(tmp_path, capsys, options, message):
    pytest.importorskip("flatbuffers")
    status, _, errors = runner(capsys)("export", tmp_path / "none", tmp_path / "out", *options)
    assert status == 2 and len(errors) == 1 and message in errors[0]


def test_the_command_takes_what_a_bare_file_does_not_say(tmp_path, capsys):
    config = dataclasses.replace(
        SMALL_VIT,
        activation="gelu",
        text=dataclasses.replace(SMALL_VIT.text, num_heads=2),
    )
    save_file(to_pytorch(config, parameters(small(config))), tmp_path / "bare.safetensors")
    folders = (str(tmp_path / name) for name in ("bare.safetensors", "out"))
    run = runner(capsys, "export", *folders, "--platforms", "cpu")
    heads = f"{config.vision.num_heads},2"
    assert run("--activation", "gelu", "--num-heads", heads)[0] == 0
    written = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
    assert written["activation"] == "gelu" and written["text"]["num_heads"] == 2


def test_the_command_exports_at_another_image_size(tmp_path, capsys):
    vision = dataclasses.replace(SMALL_VIT.vision, image_size=32, patch_size=16)
    clip_jax.save(small(dataclasses.replace(SMALL_VIT, vision=vision)), tmp_path / "model")
    folders = (str(tmp_path / name) for name in ("model", "out"))
    run = runner(capsys, "export", *folders, "--platforms", "cpu")
    status, _, errors = run("--image-size", "16x50")
    assert status == 1 and "must be a multiple of the model's patches" in errors[-1]
    assert run("--image-size", "16x48")[0] == 0
    exported = export.load(tmp_path / "out")
    wide, _ = clip_jax.load(tmp_path / "model", image_size=(16, 48))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 48, 3), np.uint8)
    assert relative_error(exported.images(pixels), wide.encode_image(pixels)) < 1e-6
