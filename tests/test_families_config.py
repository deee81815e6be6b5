"""Configurations of other libraries: what they mean, what is refused by name, and what we keep."""

import dataclasses
import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import clip_jax
from clip_jax.cli import main
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.convert import (
    from_huggingface,
    from_open_clip,
    to_huggingface,
    to_open_clip,
    to_pytorch,
)
from clip_jax.convert import huggingface_config as hf
from clip_jax.convert import open_clip_config as oc
from clip_jax.convert.families import family_of
from clip_jax.convert.huggingface import from_arrays
from clip_jax.convert.huggingface_pixels import read_pixels
from clip_jax.errors import CheckpointError
from clip_jax.open_clip_architectures import architectures
from clip_jax.open_clip_catalog import pretrained_tags
from clip_jax.pixel_config import PixelConfig
from clip_jax.siglip_catalog import siglip_architectures
from tests.models import SMALL_RESNET, SMALL_VIT, random_parameters, small

OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"width": 64, "heads": 1, "layers": 2},
}
EVERYTHING = CLIPConfig(
    16,
    dataclasses.replace(
        SMALL_VIT.vision,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
        mlp_width=100,
        layer_scale=1e-4,
        has_ln_pre=False,
        pooling="mean",
        norm_after_pooling=True,
    ),
    TextConfig(
        64,
        2,
        1,
        activation="quick_gelu",
        norm_epsilon=0.1,
        mlp_width=77,
        layer_scale=0.5,
        is_causal=False,
        pooling="eos",
        eos_id=0,
        has_projection_bias=True,
        tokenizer="someone/words",
    ),
    "gelu",
    logit_bias=-10.0,
    pixels=PixelConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bilinear"),
)


def changed(document, **changes):
    """A copy of a nested dictionary; a key such as `vision_cfg__width` names an inner one."""
    document = json.loads(json.dumps(document))
    for key, value in changes.items():
        *outer, name = key.split("__")
        place = document
        for part in outer:
            place = place[part]
        place[name] = value
    return document


def test_a_configuration_with_every_switch_survives_json():
    assert CLIPConfig.from_json(EVERYTHING.to_json()) == EVERYTHING
    assert hash(CLIPConfig.from_json(EVERYTHING.to_json())) == hash(EVERYTHING)


def test_a_configuration_that_says_nothing_new_is_written_as_before():
    assert json.loads(SMALL_VIT.to_json()) == {
        "embed_dim": 16,
        "vision": {
            "type": "vit",
            "image_size": 32,
            "patch_size": 8,
            "width": 64,
            "num_layers": 2,
            "num_heads": 1,
        },
        "text": {
            "width": 64,
            "num_layers": 2,
            "num_heads": 1,
            "context_length": 77,
            "vocab_size": 49408,
        },
        "activation": "quick_gelu",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text__pooling": "mean"}, "pooling must be one of argmax, eos, first, last. Got 'mean'"),
        ({"text__pooling": "eos"}, "needs eos_id"),
        ({"text__is_causal": 1}, "is_causal must be true or false. Got 1"),
        ({"text__norm_epsilon": 0}, "norm_epsilon must be positive"),
        ({"text__mlp_width": 0}, "mlp_width must be positive and whole"),
        ({"text__has_projection": False}, "its width must be embed_dim. Got 64 and 16"),
        ({"vision__layer_scale": "big"}, "layer_scale must be a finite number. Got 'big'"),
        ({"vision__activation": "relu"}, "activation must be one of .* Got 'relu'"),
        ({"pixels": {"mean": [1, 2]}}, "mean must be three finite numbers"),
        ({"pixels": {"mean": 3}}, "mean must be three finite numbers"),
        ({"pixels": {"std": [1, 0, 1]}}, "std must be positive"),
        ({"logit_bias": float("nan")}, "logit_bias must be a finite number"),
    ],
)
def test_impossible_switches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CLIPConfig.from_json(json.dumps(changed(json.loads(SMALL_VIT.to_json()), **change)))


@pytest.mark.parametrize("name", sorted(set(architectures()) - set(siglip_architectures())))
def test_every_architecture_of_openclip_is_read_and_written_back(name):
    document = {"model_cfg": {**architectures()[name], "quick_gelu": True}}
    config = oc.from_document(document)
    if config.text.tokenizer is None:
        assert oc.from_document(oc.to_document(config)) == config


def test_tags_give_their_activation_and_their_pixels():
    found = {tag.name: oc.from_document(tag.open_clip_config()) for tag in pretrained_tags()}
    assert found["ViT-H-14/dfn5b"].activation == "quick_gelu"
    assert found["ViT-H-14/dfn5b"].pixels.resize == "squash"
    assert found["ViT-H-14/laion2b_s32b_b79k"].activation == "gelu"
    assert found["ViT-H-14/laion2b_s32b_b79k"].vision.num_heads == 16
    assert found["ViT-L-14/laion2b_s32b_b82k"].pixels.mean == (0.5, 0.5, 0.5)


def test_widths_of_mlps_are_truncated_as_in_openclip():
    for name, width in {
        "ViT-H-14": None,
        "ViT-g-14": 6144,
        "ViT-bigG-14": 8192,
        "ViT-e-14": 15360,
    }.items():
        vision = oc.from_document({"model_cfg": architectures()[name]}).vision
        assert isinstance(vision, ViTConfig) and vision.mlp_width == width, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "model_cfg.colour: unknown"),
        ({"vision_cfg__colour": 1, "text_cfg__depth": 2}, r"vision_cfg.colour.*text_cfg.depth"),
        ({"multimodal_cfg": {"width": 3}}, "multimodal_cfg: a CoCa model"),
        ({"vision_cfg__timm_model_name": "vit_so400m"}, "a vision tower of timm .'vit_so400m'"),
        ({"vision_cfg__attentional_pool": True}, "attentional pooling"),
        ({"vision_cfg__qk_norm": True}, "vision_cfg.qk_norm: an experimental kind"),
        ({"text_cfg__hf_model_name": "roberta-base"}, "a text tower of transformers .'roberta-b"),
        ({"text_cfg__embed_cls": True}, "embed_cls"),
        ({"text_cfg__text_arch": "modern"}, "text_arch"),
        ({"vision_cfg__pool_type": "none"}, "pool_type: expected one of tok, avg. Got 'none'"),
        ({"vision_cfg__head_width": 60}, "head_width: must divide the width, 64. Got 60"),
        ({"text_cfg__heads": 7}, "num_heads must divide the width. Got 7 and 64"),
        ({"vision_cfg__image_size": [32, 0]}, "image_size: expected a whole number, positive"),
        ({"vision_cfg__width": "wide"}, "vision_cfg.width: expected a whole number"),
        ({"vision_cfg": 3}, "model_cfg.vision_cfg: expected an object. Got 3"),
        ({"quick_gelu": True, "vision_cfg__act_kwargs": {"approximate": "tanh"}}, "act_kwargs"),
        ({"vision_cfg__norm_kwargs": {"bias": False}}, "norm_kwargs.bias: unknown"),
        ({"embed_dim": None}, "embed_dim: expected a whole number"),
    ],
)
def test_openclips_configurations_are_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=message):
        oc.from_document({"model_cfg": changed(OPEN_CLIP, **change)})


def test_without_model_cfg_nothing_is_read():
    with pytest.raises(CheckpointError, match="model_cfg: expected an object"):
        oc.from_document({"preprocess_cfg": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "text_config.hidden_act: expected one of quick"),
        ({"vision_config": {"num_attention_heads": 7}}, "num_heads must divide the width"),
        ({"vision_config": {"num_channels": 4}}, "num_channels: images of 3 channels"),
        ({"text_config": {"eos_token_id": None}}, "eos_token_id: expected a whole number"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id: expected a whole number"),
        ({"vision_config": [1]}, "vision_config: expected an object. Got a list"),
        (
            {"text_config": {"hidden_size": 0}, "vision_config": {"hidden_act": 3}},
            r"hidden_act[^;]*; [^;]*hidden_size[^;]*$",
        ),
    ],
)
def test_hugging_faces_configurations_are_refused_by_name(change, message):
    with pytest.raises(CheckpointError, match=message):
        hf.from_document({"model_type": "clip", **change})


def test_defaults_of_hugging_face_are_those_of_vit_b_32():
    config = hf.from_document({"model_type": "clip", "text_config": None})
    assert config.vision == ViTConfig(224, 32, 768, 12, 12)
    assert config.text == TextConfig(512, 12, 8, pooling="eos", eos_id=49407)
    assert (config.embed_dim, config.activation) == (512, "quick_gelu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SMALL_RESNET, "a ResNet"),
        (EVERYTHING, "layer scale.*without ln_pre|without ln_pre.*"),
        (
            dataclasses.replace(
                SMALL_VIT, text=dataclasses.replace(SMALL_VIT.text, pooling="eos", eos_id=2)
            ),
            "text pooling 'eos' at the id 2",
        ),
    ],
)
def test_what_hugging_face_cannot_express_is_refused_before_a_byte_is_written(
    config, message, tmp_path
):
    with pytest.raises(CheckpointError, match=message):
        to_huggingface(config, {}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_openclip_cannot_express_is_refused_before_a_byte_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="different activations.*tokenizer someone/words"):
        to_open_clip(EVERYTHING, {}, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_the_official_layout_cannot_express_is_refused():
    with pytest.raises(CheckpointError, match="no place for .*layer scale.*a bias of the logits"):
        to_pytorch(EVERYTHING, {})


def test_end_tokens_that_hugging_face_writes_keep_the_rule():
    def written(**text):
        text = TextConfig(64, 2, 1, **text)
        return hf.text_document(text, "gelu", 16)["eos_token_id"]

    assert written() == 49407
    assert written(eos_id=2) == 2
    assert written(vocab_size=500) == 2
    assert written(pooling="eos", eos_id=0) == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": {"model_type": "siglip2"}},
            r"\(type siglip2\) is a NaFlex model of SigLIP 2",
        ),
        ({"config.json": {"model_type": "chinese_clip"}}, "type chinese_clip, which is not"),
        ({"config.json": {"model_type": 3}}, "type int, which is not supported"),
        ({"model_index.json": {}, "text_encoder": None}, "pipeline of diffusers.*text_encoder"),
    ],
)
def test_folders_of_other_models_are_refused_by_name(files, message, tmp_path):
    for name, content in files.items():
        if content is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        family_of(tmp_path)


def test_openclips_configuration_wins_over_a_config_json_beside_it(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "model_type": "clip"}))
    assert family_of(tmp_path) == "open_clip"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["visual.trunk.stem.weight"], "vision tower of timm"),
        (["visual.trunk.attn_pool.latent"], "is a SigLIP model, which loads together with"),
        (["text.transformer.embeddings.word_embeddings.weight"], "text tower of transformers"),
        (["text_decoder.ln.weight", "visual.conv1.weight"], "CoCa"),
        (["image_encoder.model.a"], "MobileCLIP"),
        (["cond_stage_model.transformer.a"], "Stable Diffusion"),
        (["vision_model.head.probe"], "is a SigLIP model, which loads together with"),
        (["text_model.embeddings.token_embedding.weight"], "give the folder that holds both"),
        (["visual.conv1.weight"], "does not say which model it holds.*model="),
    ],
)
def test_files_of_other_models_are_refused_by_their_arrays_names(names, message, tmp_path):
    save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=message):
        from_open_clip(tmp_path / "m.safetensors")


def test_a_file_needs_a_known_model_and_an_activation(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"visual.conv1.weight": np.zeros(2, np.float32)}, path)
    for model, activation, message in [
        ("ViT-H-14", None, "activation must be given"),
        ("ViT-H-15", "gelu", "must be the name of one of OpenCLIP's architectures"),
        ("ViT-H-14/dfn5b", "gelu", "says its own"),
        ("ViT-H-14-quickgelu", "gelu", "has the activation quick_gelu"),
        ({"model_cfg": {}}, "gelu", "the dictionary says it"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_open_clip(path, model=model, activation=activation)
    with pytest.raises(CheckpointError, match="arrays can't fill|do not fit"):
        from_open_clip(path, model="ViT-B-32", activation="gelu")


def test_both_counts_of_layers_are_said():
    params = {name: np.zeros(1) for name in ("vision_model.encoder.layers.4.mlp.fc1.bias",)}
    with pytest.raises(CheckpointError, match="layers: config.json says 2, the arrays have 5"):
        from_arrays(SMALL_VIT, params)


def test_shapes_that_contradict_the_configuration_are_all_listed(tmp_path):
    to_open_clip(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "m")
    path = tmp_path / "m" / "open_clip_config.json"
    document = changed(json.loads(path.read_text()), model_cfg__vision_cfg__image_size=64)
    document["model_cfg"]["text_cfg"]["layers"] = 3
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        from_open_clip(tmp_path / "m")
    said = str(caught.value)
    assert "text_cfg.layers: model_cfg says 3, the arrays have 2" in said
    assert "! visual.positional_embedding: expected shape (65, 64). Got (17, 64)" in said


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, PixelConfig()),
        ({"size": 224, "crop_size": 224}, PixelConfig()),
        ({"size": {"shortest_edge": 224}, "resample": 2}, PixelConfig(interpolation="bilinear")),
        ({"size": {"height": 8, "width": 8}}, PixelConfig(resize="squash")),
        ({"image_mean": [0.5, 0.5, 0.5]}, PixelConfig(mean=(0.5, 0.5, 0.5))),
    ],
)
def test_pixels_are_what_the_folder_says(document, expected, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
    assert read_pixels(tmp_path) == expected
    new = {"image_processor": document, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(new))
    assert read_pixels(tmp_path) == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"resample": 0}, "resample: expected 3"),
        ({"size": {"longest_edge": 3}}, "size: expected a number"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1}, "rescale_factor: expected 1/255"),
        ({"image_mean": [1, 2]}, "image_mean: expected three numbers"),
    ],
)
def test_pixels_of_another_kind_are_refused(document, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        read_pixels(tmp_path)


def test_files_that_contradict_each_other_are_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 2}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {}}))
    message = (
        r"say different things about the pixels \(interpolation: bilinear and bicubic\): remove"
    )
    with pytest.raises(CheckpointError, match=message):
        read_pixels(tmp_path)


def test_openai_to_hugging_face_to_openclip_and_back_is_identical_to_the_bit(tmp_path):
    params = random_parameters(SMALL_VIT)
    to_huggingface(SMALL_VIT, params, tmp_path / "hf")
    config, tree = from_huggingface(tmp_path / "hf")
    to_open_clip(config, tree, tmp_path / "oc")
    config, tree = from_open_clip(tmp_path / "oc")
    before, after = to_pytorch(SMALL_VIT, params), to_pytorch(config, tree)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert (config.vision, config.embed_dim) == (SMALL_VIT.vision, SMALL_VIT.embed_dim)


def test_the_command_converts_between_the_libraries_and_refuses_in_one_line(tmp_path, capsys):
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "hf")
    steps = [("hf", "oc", "open_clip"), ("oc", "native", None), ("native", "hf2", "huggingface")]
    for source, target, to in steps:
        options = ["--to", to] if to else []
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), *options]) == 0
    assert sorted(path.name for path in (tmp_path / "hf2").iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    config = clip_jax.load(tmp_path / "hf2")[0].config
    assert config.text.end_id == 49407 and config.vision == SMALL_VIT.vision
    clip_jax.save(small(SMALL_RESNET), tmp_path / "resnet")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "resnet"), str(tmp_path / "x"), "--to", "huggingface"])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no place for: a ResNet" in said[0]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["clip", "clip_text_model"])
def test_a_number_of_layers_that_no_arrays_fill_is_refused_at_once(kind, tmp_path):
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    document = json.loads(path.read_text())
    document["text_config"]["num_hidden_layers"] = 2**31 - 1
    inner = document if kind == "clip" else {**document["text_config"], "model_type": kind}
    path.write_text(json.dumps(inner))
    load = clip_jax.load if kind == "clip" else clip_jax.load_text_model
    with pytest.raises(CheckpointError, match="arrays can't fill 2,147,483"):
        load(tmp_path / "m")


def test_the_command_names_a_wrong_model_of_a_file_in_one_line(tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_file({"visual.conv1.weight": np.zeros(2, np.float32)}, path)
    for model, status, said in [
        ("ViT-H-15", 2, "must be the name of one of OpenCLIP's architectures"),
        ("ViT-B-32/openay", 2, "did you mean 'openai'"),
        ("ViT-B-32/openai", 1, "do not fit|arrays can't fill"),
    ]:
        options = ["--model", model] + ([] if "/" in model else ["--activation", "gelu"])
        assert main(["convert", str(path), str(tmp_path / "out"), *options]) == status
        assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
