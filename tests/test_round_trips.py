"""What a configuration says survives another library's folder, and comes back from it."""

import dataclasses
import json

import numpy as np
import pytest

import clip_jax
from clip_jax.config import CLIPConfig, TextConfig
from clip_jax.convert import (
    from_huggingface,
    from_open_clip,
    from_pytorch,
    to_huggingface,
    to_open_clip,
    to_pytorch,
)
from clip_jax.convert import open_clip_config as oc
from clip_jax.convert.huggingface_config import POOLING
from clip_jax.convert.huggingface_towers import read_text_tower
from clip_jax.errors import CheckpointError
from clip_jax.nn import model_digest
from clip_jax.parity.reference import quiet
from tests import reference
from tests.models import SMALL_VIT, random_parameters, random_tokens, relative_error, small
from tests.peers import TOLERANCE, ids, peer

PARAMS = random_parameters(SMALL_VIT)
TEXT = {
    "hf_tokenizer_name": "bert-base-uncased",
    "tokenizer_kwargs": {"strip_sep_token": True},
    "pad_id": 3,
    "hf_pooler_type": "mean_pooler",
}
DOCUMENT = {
    "model_cfg": {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"layers": 2, "width": 64, "patch_size": 8, "patch_dropout": 0.5}
        | {"image_size": 32},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2, **TEXT},
    },
    "preprocess_cfg": {"interpolation": "random", "mode": "RGB", "fill_color": 7, "more": [1, 2]},
}


def write(folder, document):
    to_open_clip(SMALL_VIT, PARAMS, folder)
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return folder


def read(folder):
    return json.loads((folder / "open_clip_config.json").read_text())


def test_keys_that_do_not_change_an_openclip_model_are_written_back(tmp_path):
    config, params = from_open_clip(write(tmp_path / "a", DOCUMENT))
    clip_jax.save(clip_jax.load(tmp_path / "a")[0], tmp_path / "native")
    saved = clip_jax.load(tmp_path / "native")[0].config
    assert saved == config == CLIPConfig.from_json(config.to_json())
    for name, written in (("b", config), ("c", saved)):
        to_open_clip(written, params, tmp_path / name)
        document = read(tmp_path / name)
        assert document["model_cfg"]["text_cfg"].items() >= TEXT.items()
        assert document["model_cfg"]["vision_cfg"]["patch_dropout"] == 0.5
        assert document["preprocess_cfg"].items() >= DOCUMENT["preprocess_cfg"].items()
        assert from_open_clip(tmp_path / name)[0] == config


@pytest.mark.parametrize(
    "options", [{"clean": "canonicalize"}, {"clean": "lower"}, {"reduction_mask": "syntax"}]
)
def test_options_of_openclips_own_tokenizer_are_written_back(options):
    model = {**DOCUMENT["model_cfg"], "text_cfg": {"width": 64, "tokenizer_kwargs": options}}
    config = oc.from_document({"model_cfg": model})
    document = oc.to_document(config)
    assert document["model_cfg"]["text_cfg"]["tokenizer_kwargs"] == options
    assert oc.from_document(document) == config


def test_a_configuration_of_openclip_that_says_nothing_more_keeps_nothing(tmp_path):
    to_open_clip(SMALL_VIT, PARAMS, tmp_path / "a")
    assert from_open_clip(tmp_path / "a")[0] == SMALL_VIT


def test_a_tokenizer_that_has_been_changed_since_is_not_written(tmp_path):
    config = oc.from_document(DOCUMENT)
    for tokenizer in (None, "someone/else"):
        other = dataclasses.replace(config.text, tokenizer=tokenizer)
        with pytest.raises(CheckpointError, match="no place for: the options of the tokenizer"):
            oc.to_document(dataclasses.replace(config, text=other))
    with pytest.raises(CheckpointError, match="open_clip must be an object of vision_cfg"):
        oc.to_document(dataclasses.replace(config, open_clip="[1]"))


def test_what_is_kept_for_openclip_makes_no_other_model_of_it():
    model = small(SMALL_VIT)
    before = model_digest(model)
    model.config = dataclasses.replace(SMALL_VIT, open_clip='{"text_cfg": {"pad_id": 3}}')
    assert model_digest(model) == before


def test_a_margin_of_another_color_is_refused():
    pixels = {"resize_mode": "longest", "fill_color": 255}
    with pytest.raises(CheckpointError, match="fill_color: expected 0, a black margin. Got 255"):
        oc.from_document({**DOCUMENT, "preprocess_cfg": pixels})


def same(config, params):
    expected, found = to_pytorch(SMALL_VIT, PARAMS), to_pytorch(config, params)
    return config == SMALL_VIT and all(
        np.array_equal(found[name], expected[name]) for name in expected
    )


def test_openai_to_hugging_face_and_back_is_the_same_configuration(tmp_path):
    to_huggingface(*from_pytorch(to_pytorch(SMALL_VIT, PARAMS)), tmp_path / "hf")
    text = json.loads((tmp_path / "hf" / "config.json").read_text())["text_config"]
    assert text["eos_token_id"] == 49407
    assert same(*from_huggingface(tmp_path / "hf"))
    tower, _, _ = read_text_tower(tmp_path / "hf")
    assert (tower.pooling, tower.eos_id) == ("argmax", None)
    to_open_clip(*from_huggingface(tmp_path / "hf"), tmp_path / "oc")
    assert same(*from_open_clip(tmp_path / "oc"))


def test_the_rule_of_somebody_elses_file_stays_as_it_says(tmp_path):
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    document = json.loads(path.read_text())
    for end, rule in ((5, ("eos", 5)), (2, ("argmax", None)), (49407, ("argmax", None))):
        document["text_config"]["eos_token_id"] = end
        path.write_text(json.dumps(document))
        text = from_huggingface(tmp_path / "hf")[0].text
        assert (text.pooling, text.eos_id) == rule
    del document["text_config"][POOLING]
    path.write_text(json.dumps(document))
    text = from_huggingface(tmp_path / "hf")[0].text
    assert text == TextConfig(64, 2, 1, pooling="eos", eos_id=49407)


@pytest.mark.torch
def test_transformers_and_openclip_load_what_is_written_with_these_keys(tmp_path):
    transformers, open_clip = peer("transformers"), peer("open_clip")
    tokens, ours = random_tokens(2), small(SMALL_VIT)
    to_huggingface(SMALL_VIT, PARAMS, tmp_path / "hf")
    config = dataclasses.replace(
        SMALL_VIT,
        open_clip='{"text_cfg": {"pad_id": 3, "tokenizer_kwargs": {"clean": "lower"}}, '
        '"vision_cfg": {"patch_dropout": 0.5}, "preprocess_cfg": {"interpolation": "random"}}',
    )
    to_open_clip(config, PARAMS, tmp_path / "oc")
    with quiet(), reference.torch().inference_mode():
        one = transformers.CLIPModel.from_pretrained(tmp_path / "hf").eval()
        text = one.get_text_features(input_ids=ids(tokens)).pooler_output
        other, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'oc'}")
        theirs = other.eval().encode_text(ids(tokens))
    for given in (text, theirs):
        assert relative_error(ours.encode_text(tokens), given) < TOLERANCE
