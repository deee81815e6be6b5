"""SigLIP against transformers and OpenCLIP, as black boxes, on small random models."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import from_huggingface, from_open_clip, to_huggingface
from clip_jax.nn import from_parameters
from clip_jax.parity import compare, find_subject, first_difference
from clip_jax.parity.reference import quiet
from clip_jax.weights import save_parameters
from tests import reference
from tests.models import random_images, random_parameters, relative_error
from tests.peers import TOLERANCE, arrays_of, peer, randomized, saved
from tests.pictures import MODES, random_image
from tests.siglip import SIGLIP, random_ids, small_tag, to_big_vision, write_npz

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not reference.available(), reason="the PyTorch reference is not installed"),
]

TEXT = {
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 13,
    "vocab_size": 61,
    "projection_size": 70,
    "bos_token_id": None,
    "eos_token_id": 1,
}
VISION = {
    "hidden_size": 70,
    "intermediate_size": 99,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "image_size": 33,
    "patch_size": 8,
}


def build(text=(), vision=()):
    """Transformers' model with these changes of its configuration, and random weights."""
    transformers = peer("transformers")
    with quiet():
        config = transformers.SiglipConfig(
            text_config={**TEXT, **dict(text)}, vision_config={**VISION, **dict(vision)}
        )
        return randomized(transformers.SiglipModel(config))


def inputs(model, images=3):
    """Images, ids, and the same as tensors."""
    images = random_images(images, model.config.vision.image_size)
    ids = random_ids(4, model.config)
    torch = reference.torch()
    normalized = ((images / np.float32(255) - np.float32(0.5)) * 2).transpose(0, 3, 1, 2)
    return images, ids, torch.from_numpy(normalized.copy()), torch.from_numpy(ids).long()


CASES = {
    "as it is": ({}, {}),
    "towers of different activations": ({"hidden_act": "gelu"}, {}),
    "epsilons": ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 0.1}),
    "one patch with a remainder": ({}, {"patch_size": 20}),
    "one text position": ({"max_position_embeddings": 1}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_what_transformers_computes(name, tmp_path):
    theirs = build(*CASES[name])
    model = from_parameters(*from_huggingface(saved(theirs, tmp_path / "theirs")))
    images, ids, pixels, tokens = inputs(model)
    with reference.torch().inference_mode(), quiet():
        out = theirs(pixel_values=pixels, input_ids=tokens, output_hidden_states=True)
    image = model.image_outputs(images, hidden_states=True)
    text = model.text_outputs(ids, hidden_states=True)
    for ours, other in ((image, out.vision_model_output), (text, out.text_model_output)):
        assert relative_error(ours.pooler_output, other.pooler_output) < TOLERANCE
        assert relative_error(ours.last_hidden_state, other.last_hidden_state) < TOLERANCE
        assert ours.hidden_states is not None
        for mine, its in zip(ours.hidden_states, other.hidden_states, strict=True):
            assert relative_error(mine, its) < TOLERANCE
    assert relative_error(image.image_embeds, out.vision_model_output.pooler_output) < TOLERANCE
    assert relative_error(text.text_embeds, out.text_model_output.pooler_output) < TOLERANCE
    logits = model(images, ids)[0]
    np.testing.assert_allclose(logits, out.logits_per_image, atol=1e-3)
    np.testing.assert_allclose(
        model.probabilities(logits), reference.torch().sigmoid(out.logits_per_image), atol=1e-5
    )


def test_a_folder_of_ours_is_theirs_with_nothing_missing_and_nothing_unexpected(tmp_path):
    transformers = peer("transformers")
    folder = saved(build(), tmp_path / "theirs")
    to_huggingface(*from_huggingface(folder), tmp_path / "ours")
    there, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "ours"))
    assert there.keys() == back.keys()
    assert all(there[name].tobytes() == back[name].tobytes() for name in there)
    with quiet():
        _, info = transformers.SiglipModel.from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
        processor = transformers.SiglipImageProcessorPil.from_pretrained(tmp_path / "ours")
    assert not any(info.values())
    size = {"height": 33, "width": 33}
    assert (dict(processor.size), processor.resample) == (size, 3)
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3


@pytest.mark.parametrize("kind", ["SiglipTextModel", "SiglipVisionModel"])
def test_a_tower_alone_gives_what_transformers_computes(kind, tmp_path):
    transformers = peer("transformers")
    whole = build()
    with quiet():
        tower = getattr(transformers, kind).from_pretrained(saved(whole, tmp_path / "whole"))
    folder = saved(tower.eval(), tmp_path / "tower")
    model = from_parameters(*from_huggingface(tmp_path / "whole"))
    images, ids, pixels, tokens = inputs(model)
    with reference.torch().inference_mode(), quiet():
        if kind == "SiglipTextModel":
            ours, theirs = clip_jax.load_text_model(folder)[0](ids), tower(input_ids=tokens)
        else:
            ours = clip_jax.load_vision_model(folder)[0](images)
            theirs = tower(pixel_values=pixels)
    assert relative_error(ours.pooler_output, theirs.pooler_output) < TOLERANCE
    assert relative_error(ours.last_hidden_state, theirs.last_hidden_state) < TOLERANCE


def test_a_real_architecture_gives_what_open_clip_computes(tmp_path):
    """All of ViT-B-16-SigLIP but for a text tower of two layers and a small vocabulary."""
    open_clip = peer("open_clip")
    document = small_tag()
    model_cfg = document["model_cfg"]
    with quiet():
        theirs = open_clip.CustomTextCLIP(
            **{k: v for k, v in model_cfg.items() if k not in ("custom_text", "quick_gelu")}
        ).eval()
    with reference.torch().no_grad():  # where timm starts with zeros, nothing would be compared
        for name, array in theirs.named_parameters():
            if name.endswith(("bias", "latent", "pos_embed")) and array.ndim:
                array.normal_(0, 0.1)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    save_file(arrays_of(theirs), tmp_path / "open_clip_model.safetensors")
    model = from_parameters(*from_open_clip(tmp_path, activation="open_clip"))
    images, ids, pixels, tokens = inputs(model, images=1)
    with reference.torch().inference_mode():
        image, text = theirs.encode_image(pixels), theirs.encode_text(tokens)
        logits = theirs.get_logits(pixels, tokens)[0]
    assert relative_error(model.encode_image(images), image) < TOLERANCE
    assert relative_error(model.encode_text(ids), text) < TOLERANCE
    np.testing.assert_allclose(model(images, ids)[0], logits, atol=1e-3)
    # The tanh form, with which the published weights were trained, is near and not the same.
    trained = from_parameters(*from_open_clip(tmp_path))
    assert TOLERANCE < relative_error(trained.encode_text(ids), text) < 1e-2


@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_transformers_to_the_bit(resample, tmp_path):
    transformers = peer("transformers")
    folder = tmp_path / "model"
    to_huggingface(SIGLIP, random_parameters(SIGLIP), folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": resample}))
    with quiet():
        theirs = transformers.SiglipImageProcessorPil.from_pretrained(folder, do_convert_rgb=True)
    _, exact = clip_jax.load(folder, preprocessing="huggingface")
    _, ours = clip_jax.load(folder)
    rng = np.random.default_rng(0)
    for size in ((64, 48), (29, 29), (7, 90), (300, 21)):
        for mode in (*MODES, "P, RGBA palette"):
            if mode == "La":  # refused by both
                continue
            image = random_image(mode.replace(", RGBA palette", ""), size, rng)
            if "palette" in mode:
                image.putpalette(rng.bytes(1024), "RGBA")
            with quiet():
                expected = theirs(image, return_tensors="np")["pixel_values"][0]
            expected = expected.transpose(1, 2, 0)
            np.testing.assert_array_equal(exact(image), expected, err_msg=mode)
            if mode in ("RGB", "L"):  # of others our rule is OpenCLIP's: resized as they are
                np.testing.assert_array_equal(ours(image), expected, err_msg=mode)


@pytest.mark.filterwarnings("ignore:the model's vocabulary has 61 ids")
def test_the_command_compares_every_form_with_its_library(tmp_path, capsys):
    params = random_parameters(SIGLIP)
    save_parameters(SIGLIP, params, tmp_path / "native")
    to_huggingface(SIGLIP, params, tmp_path / "huggingface")
    arrays = load_file(tmp_path / "huggingface" / "model.safetensors")
    npz = write_npz(tmp_path / "b_29.npz", to_big_vision(arrays, SIGLIP, stacked=True))
    for path in (tmp_path / "native", tmp_path / "huggingface", npz):
        subject = find_subject(path)
        assert subject.library == "transformers"
        model, preprocess, tokenizer = subject.load()
        rows = compare(model, preprocess, subject.load_peer(), tokenizer=tokenizer)
        assert first_difference(rows) is None
        assert [row.stage for row in rows] == [
            "preprocessing",
            "image conv1",
            *(f"image transformer.resblocks.{i}" for i in range(3)),
            "image ln_post",
            "image features",
            *(f"text transformer.resblocks.{i}" for i in range(2)),
            "text features",
            "logits",
        ]
    assert main(["parity", str(tmp_path / "huggingface")]) == 0
    assert "logits" in capsys.readouterr().out
