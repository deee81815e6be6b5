"""Folders of Flax CLIP's classes: read by each, written for transformers 5, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import clip_jax
from clip_jax import compat
from clip_jax.convert import to_huggingface
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.nn import flatten
from clip_jax.parity.reference import quiet
from tests import flax_clip as cases
from tests import reference
from tests.models import SMALL_VIT, random_parameters, relative_error, small
from tests.peers import TOLERANCE, peer

CONFIGS = {
    "CLIPTextModel": compat.CLIPTextConfig(**cases.TEXT),
    "CLIPTextModelWithProjection": compat.CLIPTextConfig(**cases.TEXT_EOS),
    "CLIPVisionModel": compat.CLIPVisionConfig(**cases.VISION),
    "CLIPVisionModelWithProjection": compat.CLIPVisionConfig(**cases.VISION),
    "CLIPModel": compat.CLIPConfig(cases.TEXT_EOS, cases.VISION, projection_dim=20),
}


def filled(name):
    model = getattr(compat, f"Flax{name}")(CONFIGS[name])
    shapes = {path: array.shape for path, array in flatten(model.params_shape_tree).items()}
    model.params = cases.random_params(shapes)
    return model


@pytest.fixture(scope="module")
def text():
    return filled("CLIPTextModel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "hf"
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), folder)
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_a_whole_model_to_transformers_5(name, tmp_path):
    transformers, torch = peer("transformers"), reference.torch()
    ours = filled(name)
    ours.save_pretrained(tmp_path / "saved")
    with quiet():
        theirs, loading = getattr(transformers, name).from_pretrained(
            tmp_path / "saved", output_loading_info=True
        )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {"input_ids": cases.tokens(), "pixel_values": cases.pixels()}
    wanted = inputs if name == "CLIPModel" else {ours_input(name): inputs[ours_input(name)]}
    with torch.inference_mode(), quiet():
        expected = theirs.eval()(**{
            key: torch.from_numpy(value.astype(np.int64) if key == "input_ids" else value)
            for key, value in wanted.items()
        })  # fmt: skip
    given = ours(**wanted)
    compared = [key for key in given if isinstance(given[key], jax.Array)]
    assert len(compared) >= 2
    for key in compared:
        assert relative_error(given[key], expected[key]) < TOLERANCE, key


def ours_input(name):
    return "input_ids" if "Text" in name else "pixel_values"


@pytest.mark.torch
def test_configurations_of_transformers_5_are_taken(text):
    transformers = peer("transformers")
    config = transformers.CLIPTextConfig(**cases.TEXT)
    model = compat.FlaxCLIPTextModel(config, _do_init=False)
    assert model.config is config
    given = model(cases.tokens(), params=text.params)
    assert (given[0] == text(cases.tokens())[0]).all()
    whole = transformers.CLIPConfig(
        text_config=cases.TEXT_EOS, vision_config=cases.VISION, projection_dim=20
    )
    model = compat.FlaxCLIPModel(whole, _do_init=False)
    assert model.required_params == filled("CLIPModel").required_params


def test_a_configuration_survives_its_folder(folder, tmp_path):
    config = compat.CLIPTextConfig.from_pretrained(folder, projection_dim=7)
    assert [config.hidden_size, config.projection_dim, config.vocab_size] == [64, 7, 49408]
    (tmp_path / "config.json").write_text(config.to_json_string())
    assert compat.CLIPTextConfig.from_pretrained(tmp_path) == config
    whole = compat.CLIPConfig.from_pretrained(folder)
    assert whole.text_config.hidden_size == whole.vision_config.hidden_size == 64
    assert compat.CLIPConfig.from_dict(json.loads(whole.to_json_string())) == whole
    joined = compat.CLIPConfig.from_text_vision_configs(whole.text_config, whole.vision_config)
    assert joined.vision_config.patch_size == 8


def test_a_configuration_may_be_given_in_place_of_the_folders(folder):
    config = compat.CLIPTextConfig.from_pretrained(folder, hidden_act="gelu")
    ids = cases.tokens()
    changed = compat.FlaxCLIPTextModel.from_pretrained(folder, config=config)
    plain = compat.FlaxCLIPTextModel.from_pretrained(folder)
    assert relative_error(changed(ids)[0], plain(ids)[0]) > 1e-3
    config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"(?s)16 arrays of params do not fit.*layers/2/"):
        compat.FlaxCLIPTextModel.from_pretrained(folder, config=config)


@pytest.mark.parametrize("from_pt", [False, True])
def test_a_folder_that_flax_wrote_is_read_to_the_bit(from_pt, text, tmp_path):
    (tmp_path / "config.json").write_text(text.config.to_json_string())
    tree = jax.tree.map(np.asarray, text.params)
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    again = compat.FlaxCLIPTextModel.from_pretrained(tmp_path, from_pt=from_pt)
    for path, array in flatten(again.params).items():
        assert np.asarray(array).tobytes() == flatten(tree)[path].tobytes(), path


def test_a_tower_without_projection_has_no_embeddings(tmp_path):
    for name, field in (("Text", "text_embeds"), ("Vision", "image_embeds")):
        filled(f"CLIP{name}Model").save_pretrained(tmp_path / name)
        kind = getattr(compat, f"FlaxCLIP{name}ModelWithProjection")
        with pytest.raises(CheckpointError, match=f"no {field}: take FlaxCLIP{name}Model, or"):
            kind.from_pretrained(tmp_path / name)


def test_another_encoder_is_refused_by_its_name(tmp_path):
    (tmp_path / "text_encoder_2").mkdir()
    (tmp_path / "text_encoder_2" / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CheckpointError, match="of the type t5.*expected clip"):
        compat.FlaxCLIPTextModel.from_pretrained(tmp_path, subfolder="text_encoder_2")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a pipeline of diffusers.*text_encoder_2"):
        compat.FlaxCLIPTextModel.from_pretrained(tmp_path)
    filled("CLIPVisionModel").save_pretrained(tmp_path / "vision")
    with pytest.raises(CheckpointError, match="clip_vision_model, expected clip_text_model"):
        compat.FlaxCLIPTextModel.from_pretrained(tmp_path / "vision")


def test_folders_of_other_libraries_are_refused_with_what_converts_them(tmp_path):
    clip_jax.save(small(SMALL_VIT), tmp_path / "native")
    with pytest.raises(CheckpointError, match="no folder of Hugging Face.*--to huggingface"):
        compat.FlaxCLIPModel.from_pretrained(tmp_path / "native")
    with pytest.raises(ValueError, match="has no folder 'text_encoder'"):
        compat.FlaxCLIPModel.from_pretrained(tmp_path, subfolder="text_encoder")
    with pytest.raises(ValueError, match="neither the name of a model nor a file"):
        compat.FlaxCLIPModel.from_pretrained("nowhere")


def test_a_repository_of_the_cache_is_read_offline(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    place = tmp_path / "models--some--one"
    shutil.copytree(folder, place / "snapshots" / commit / "text_encoder")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    options = {"subfolder": "text_encoder", "local_files_only": True}
    model = compat.FlaxCLIPTextModel.from_pretrained("some/one", **options)
    assert model.config.hidden_size == 64
    with pytest.raises(DownloadError, match="local_files_only forbids the network"):
        compat.FlaxCLIPTextModel.from_pretrained("some/other", **options)


def test_nothing_is_left_where_a_folder_holds_other_files(text, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        text.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


IDS = cases.tokens()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS[0]}, "tokens must have shape"),
        ({"input_ids": np.zeros((1, 12), int)}, "length 1 to 11"),
        ({"input_ids": IDS.astype(np.float32)}, "must be integers. Got float32"),
        ({"input_ids": IDS + 1}, r"must lie in 0..60. Got 1..61"),
        ({"attention_mask": IDS[:2]}, r"attention_mask must have the shape .*\(4, 11\)"),
        ({"position_ids": IDS[:, :3]}, r"position_ids must have the shape of input_ids"),
        ({"position_ids": IDS}, r"position_ids must lie in 0..10. Got 0..60"),
        ({"position_ids": IDS / 61}, r"position_ids must be integers. Got float64"),
        ({"params": {"text_model": {}}}, r"(?s)52 arrays of params do not fit:.*missing"),
    ],
)
def test_wrong_inputs_are_refused(text, arguments, message):
    with pytest.raises(ValueError, match=message):
        text(**{"input_ids": IDS, **arguments})


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (cases.pixels().transpose(0, 2, 3, 1), r"\(batch, 3, 24, 24\).*Channels come first"),
        (cases.pixels()[..., :16], r"\(batch, 3, 24, 24\). Got \(3, 3, 24, 16\)"),
        (cases.pixels()[0], r"Got \(3, 24, 24\)"),
        (np.zeros((1, 3, 24, 24), np.uint8), "normalised floats. Got uint8"),
    ],
)
def test_wrong_pixels_are_refused(pixels, message):
    model = compat.FlaxCLIPVisionModel(CONFIGS["CLIPVisionModel"], _do_init=False)
    with pytest.raises(ValueError, match=message):
        model(pixels, params={})


def test_a_model_without_params_says_where_they_are():
    model = compat.FlaxCLIPTextModel(CONFIGS["CLIPTextModel"], _do_init=False)
    for use in (lambda: model.params, lambda: model(IDS)):
        with pytest.raises(ValueError, match="_do_init=False and holds no params.*init_weights"):
            use()
    with pytest.raises(ValueError, match="pass them to each call"):
        model.params = {}
    with pytest.raises(TypeError, match="params must be nested dicts of arrays. Got list"):
        model(IDS, params=[1])


def test_params_that_do_not_fit_are_not_taken(text):
    held = text.params
    with pytest.raises(ValueError, match=r"(?s)1 arrays of params.*expected shape \(36,\)"):
        text.params = {
            "text_model": {**held["text_model"], "final_layer_norm": {
                "scale": jnp.ones(36), "bias": jnp.ones(5),
            }}
        }  # fmt: skip
    assert text.params is held


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"hidden_size": 36}, TypeError, "must be a CLIPTextConfig.*Got dict"),
        (compat.CLIPTextConfig(num_attention_heads=7), CheckpointError, "num_heads must divide"),
        (compat.CLIPTextConfig(hidden_act="relu"), CheckpointError, "hidden_act.*quick_gelu"),
        (compat.CLIPTextConfig(eos_token_id=[1]), CheckpointError, "eos_token_id.*a list"),
        (compat.CLIPTextConfig(attention_dropout=1), CheckpointError, "attention_dropout"),
    ],
)
def test_configurations_that_are_not_possible_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        compat.FlaxCLIPTextModel(config, _do_init=False)
