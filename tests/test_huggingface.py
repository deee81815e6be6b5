"""Hugging Face's CLIP folders, against transformers on small random models."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import clip_jax
from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.convert import from_huggingface, from_pytorch, to_huggingface, to_pytorch
from clip_jax.convert import huggingface_config as hf
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, from_parameters, parameters
from clip_jax.parity.reference import quiet
from clip_jax.tokenizer import tokenize
from tests import reference
from tests.models import SMALL_VIT, random_images, random_parameters, relative_error
from tests.peers import TOLERANCE, build_huggingface, ids, nchw, peer, saved, some_tokens

pytestmark = pytest.mark.torch


def features(model, images, tokens):
    """Transformers' features, not normalised."""
    with reference.torch().inference_mode(), quiet():
        image = model.get_image_features(pixel_values=nchw(images))
        text = model.get_text_features(input_ids=ids(tokens))
        return tuple(getattr(x, "pooler_output", x).numpy() for x in (image, text))


CASES = {
    "as it is": ({}, {}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "gelu_new": ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "towers of different activations": ({"hidden_act": "gelu"}, {}),
    "epsilons": ({"layer_norm_eps": 1e-3}, {"layer_norm_eps": 0.1}),
    "largest id": ({"eos_token_id": 2}, {}),
    "end 0": ({"eos_token_id": 0}, {}),
    "end that is in no row": ({"eos_token_id": 57}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_transformers_features(name, tmp_path):
    theirs = build_huggingface(*CASES[name])
    config, params = from_huggingface(saved(theirs, tmp_path / "theirs"))
    assert CLIPConfig.from_json(config.to_json()) == config
    ours = from_parameters(config, params)
    images, tokens = random_images(3, 32), some_tokens()
    image, text = features(theirs, images, tokens)
    assert relative_error(ours.encode_image(images), image) < TOLERANCE
    assert relative_error(ours.encode_text(tokens), text) < TOLERANCE


def same(one, other):
    """Whether two parameter trees are the same to the bit."""
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(
        one[path].dtype == other[path].dtype and one[path].tobytes() == other[path].tobytes()
        for path in one
    )


def test_a_folder_of_ours_is_theirs_with_nothing_missing_and_nothing_unexpected(tmp_path):
    transformers = peer("transformers")
    theirs = build_huggingface({"hidden_act": "gelu", "eos_token_id": 2})
    folder = saved(theirs, tmp_path / "theirs")
    to_huggingface(*from_huggingface(folder), tmp_path / "ours")
    there, back = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "ours"))
    assert there.keys() == back.keys()
    assert all(there[name].tobytes() == back[name].tobytes() for name in there)
    images, tokens = random_images(2, 32), some_tokens()
    expected = features(theirs, images, tokens)
    towers = {}
    for kind in ("", "Text", "Vision"):
        for projection in ("", "WithProjection") if kind else ("",):
            name = f"CLIP{kind}Model{projection}"
            with quiet():
                towers[name], info = getattr(transformers, name).from_pretrained(
                    tmp_path / "ours", output_loading_info=True
                )
            assert not info["missing_keys"] and not info["mismatched_keys"], name
            # What a tower alone leaves out is known to be the other's.
            other = {"Text": "vis", "Vision": "text", "": "?"}[kind]
            unexpected = set(info["unexpected_keys"]) - {"logit_scale"}
            kept = {n for n in unexpected if not n.startswith((other, "text_projection", "visual"))}
            assert not kept, name
    for given, wanted in zip(
        features(towers["CLIPModel"].eval(), images, tokens), expected, strict=True
    ):
        assert relative_error(given, wanted) < TOLERANCE
    with reference.torch().inference_mode():
        text = towers["CLIPTextModelWithProjection"].eval()(input_ids=ids(tokens)).text_embeds
        image = towers["CLIPVisionModelWithProjection"].eval()(pixel_values=nchw(images))
    assert relative_error(image.image_embeds, expected[0]) < TOLERANCE
    assert relative_error(text, expected[1]) < TOLERANCE


def test_every_form_of_the_weights_gives_the_same_parameters(tmp_path):
    model = build_huggingface()
    torch = reference.torch()
    config, params = from_huggingface(saved(model, tmp_path / "whole"))
    with quiet():
        model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    state = model.state_dict()
    state["text_model.embeddings.position_ids"] = torch.arange(13)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    for name in ("shards", "bin"):
        given = from_huggingface(tmp_path / name)
        assert given[0] == config and same(given[1], params), name
    state["text_model.embeddings.position_ids"] += 1
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="position_ids: expected 0, 1, 2"):
        from_huggingface(tmp_path / "bin")


def test_half_precision_stays_as_it_is_stored_and_is_loaded_as_float32(tmp_path):
    torch = reference.torch()
    folder = saved(build_huggingface().to(torch.bfloat16), tmp_path / "half")
    config, params = from_huggingface(folder)
    assert {array.dtype.name for array in flatten(params).values()} == {"bfloat16"}
    to_huggingface(config, params, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"
    assert same(from_huggingface(tmp_path / "ours")[1], params)
    loaded = clip_jax.load(folder)[0]
    assert parameters(loaded)["text_projection"].dtype == np.float32


def test_arrays_that_do_not_fit_are_all_listed_by_their_names(tmp_path):
    folder = saved(build_huggingface(), tmp_path / "theirs")
    arrays = load_file(folder / "model.safetensors")
    del arrays["text_model.encoder.layers.0.self_attn.k_proj.bias"]
    name = "vision_model.encoder.layers.2.self_attn.v_proj.weight"
    arrays[name] = arrays[name][:-1]
    arrays["classifier.weight"] = np.zeros(3, np.float32)
    save_file(arrays, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        from_huggingface(folder)
    assert str(caught.value).splitlines()[1:] == [
        "! vision_model.encoder.layers.2.self_attn.v_proj.weight: expected shape (70, 70). "
        "Got (69, 70)",
        "+ classifier.weight: unexpected",
        "- text_model.encoder.layers.0.self_attn.k_proj.bias: missing",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": {"eos_token_id": 2}, "text_config_dict": {"num_attention_heads": 4}},
        {"text_config": {"hidden_size": 64}, "text_config_dict": {}},
        {"text_config": {"hidden_size": 64}, "text_config_dict": None},
        {"text_config": None, "vision_config": {"patch_size": 8}, "vision_config_dict": {}},
        {"text_config_dict": {"hidden_size": 128, "layer_norm_eps": 1e-3}},
    ],
)
def test_old_files_dictionaries_override_as_in_transformers(changes):
    transformers = peer("transformers")
    document = {"model_type": "clip", **changes}
    ours = hf.from_document(document)
    assert isinstance(ours.vision, ViTConfig)
    with quiet():
        theirs = transformers.CLIPConfig.from_dict(json.loads(json.dumps(document)))
    for tower, (mine, their) in {
        "text": (ours.text, theirs.text_config),
        "vision": (ours.vision, theirs.vision_config),
    }.items():
        assert mine.width == their.hidden_size, tower
        assert (mine.mlp_width or 4 * mine.width) == their.intermediate_size, tower
        assert mine.num_heads == their.num_attention_heads, tower
        assert mine.norm_epsilon == their.layer_norm_eps, tower
    assert ours.text.eos_id == theirs.text_config.eos_token_id
    assert ours.vision.patch_size == theirs.vision_config.patch_size
    assert ours.embed_dim == theirs.projection_dim


def test_their_processor_and_tokenizer_load_from_a_folder_of_ours(tmp_path):
    transformers = peer("transformers")
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "ours")
    texts = ["a photo of a cat.", "Zwei Größen, 3 naïve cafés!", "don't  stop", "猫 and 犬"]
    with quiet():
        tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
        processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "ours")
        given = tokenizer(texts, padding="max_length", max_length=77)["input_ids"]
        picture = Image.fromarray(random_images(1, 80)[0, :60])
        pixels = processor(picture, return_tensors="np")["pixel_values"][0]
    expected = tokenize(texts)
    expected[np.cumsum(expected == 49407, axis=1) > 0] = 49407  # their padding
    assert np.array_equal(given, expected)
    ours = clip_jax.load(tmp_path / "ours")[1](picture)
    assert np.abs(ours - pixels.transpose(1, 2, 0)).max() < 1e-6


def test_an_official_state_dictionary_comes_back_from_a_folder_to_the_bit(tmp_path):
    arrays = {
        name: array.astype(np.float16) if array.ndim > 1 else array
        for name, array in to_pytorch(SMALL_VIT, random_parameters(SMALL_VIT)).items()
    }
    to_huggingface(*from_pytorch(arrays), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"
    back = to_pytorch(*from_huggingface(tmp_path / "hf"))
    assert back.keys() == arrays.keys()
    assert all(back[name].dtype == arrays[name].dtype for name in arrays)
    assert all(back[name].tobytes() == arrays[name].tobytes() for name in arrays)
