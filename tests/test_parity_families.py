"""`clip-jax parity` with OpenCLIP's and Hugging Face's models: each with its own library."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.cli import main
from clip_jax.config import CLIPConfig, TextConfig, ViTConfig
from clip_jax.convert import to_huggingface
from clip_jax.errors import CheckpointError
from clip_jax.nn import flatten, from_parameters, parameters, unflatten
from clip_jax.parity import compare, find_subject, first_difference
from clip_jax.parity.huggingface import load_huggingface
from clip_jax.parity.inputs import pictures
from clip_jax.parity.open_clip import load_open_clip
from clip_jax.parity.reference import quiet
from clip_jax.weights import save_parameters
from tests import reference
from tests.models import SMALL_VIT, random_parameters
from tests.peers import arrays_of, peer, randomized

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not reference.available(), reason="the PyTorch reference is not installed"),
]

# A text tower that is a module of its own, pixels and pooling that aren't OpenAI's.
MODEL_CFG = {
    "embed_dim": 24,
    "custom_text": True,
    "init_logit_bias": -3.0,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 96,
        "patch_size": 8,
        "head_width": 32,
        "pool_type": "avg",
    },
    "text_cfg": {"context_length": 20, "width": 48, "heads": 3, "layers": 2, "proj_bias": True},
}
RESNET_CFG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    "text_cfg": {"context_length": 13, "vocab_size": 61, "width": 48, "heads": 3, "layers": 1},
}
PREPROCESS_CFG = {"mean": [0.5, 0.4, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
HUGGING_FACE = CLIPConfig(
    embed_dim=16,
    vision=ViTConfig(
        image_size=32, patch_size=8, width=60, num_layers=2, num_heads=3, norm_epsilon=1e-3
    ),
    text=TextConfig(
        width=64,
        num_layers=2,
        num_heads=2,
        context_length=20,
        activation="gelu",
        pooling="eos",
        eos_id=49407,
    ),
)
VIT_STAGES = [
    "image conv1",
    "image ln_pre",
    "image transformer.resblocks.0",
    "image transformer.resblocks.1",
    "image ln_post",
    "image features",
    "text transformer.resblocks.0",
    "text transformer.resblocks.1",
    "text features",
    "logits",
]


def open_clip_folder(folder, cfg, preprocess=()):
    """A folder with a random model of OpenCLIP's, as it writes one for the Hub."""
    kind = "CustomTextCLIP" if cfg.get("custom_text") else "CLIP"
    arguments = {name: value for name, value in cfg.items() if name != "custom_text"}
    model = randomized(getattr(peer("open_clip"), kind)(**arguments))
    folder.mkdir()
    document = {"model_cfg": cfg, "preprocess_cfg": dict(preprocess)}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(arrays_of(model), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def of_open_clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip") / "model"
    return open_clip_folder(folder, MODEL_CFG, PREPROCESS_CFG)


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory):
    peer("transformers")
    folder = tmp_path_factory.mktemp("huggingface") / "model"
    to_huggingface(HUGGING_FACE, random_parameters(HUGGING_FACE), folder)
    return folder


def document_of(capsys, *arguments, status=0):
    """What the command prints with --json, and on standard error."""
    assert main(["parity", *map(str, arguments), "--json"]) == status
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_an_openclip_folder_is_compared_with_openclip(of_open_clip, capsys):
    document, err = document_of(capsys, of_open_clip)
    assert (document["peer"], document["ok"], err) == ("open_clip_torch", True, "")
    assert [row["stage"] for row in document["rows"]] == ["preprocessing", "tokens", *VIT_STAGES]


def test_a_hugging_face_folder_is_compared_with_transformers(of_transformers, capsys):
    document, err = document_of(capsys, of_transformers)
    assert (document["peer"], document["ok"], err) == ("transformers", True, "")
    assert [row["stage"] for row in document["rows"]] == ["preprocessing", "tokens", *VIT_STAGES]


def test_a_resnet_and_a_training_checkpoint_of_openclip_pass(tmp_path):
    folder = open_clip_folder(tmp_path / "model", RESNET_CFG)
    torch = reference.torch()
    state = load_file(folder / "open_clip_model.safetensors")
    state = {f"module.{name}": torch.from_numpy(array) for name, array in state.items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "epoch_1.pt")
    subject = find_subject(tmp_path / "epoch_1.pt", model={"model_cfg": RESNET_CFG})
    assert subject.library == "open_clip_torch"
    model, preprocess, tokenizer = subject.load()
    theirs = subject.load_peer()
    with pytest.warns(UserWarning, match="the model's vocabulary has 61 ids"):
        rows = compare(model, preprocess, theirs, pictures()[:1], tokenizer=tokenizer)
    assert first_difference(rows) is None
    blocks = [f"image layer{i}.0" for i in (1, 2, 3, 4)]
    assert [row.stage for row in rows][2:7] == ["image avgpool", *blocks]

    # Weights of which the configuration is known by their name, as of OpenCLIP's tags.
    (folder / "open_clip_config.json").unlink()
    same = load_open_clip(folder, {"model_cfg": RESNET_CFG})
    inputs = np.ones((1, 64, 64, 3), np.float32), np.ones((1, 13), np.int32)
    assert np.array_equal(same.logits(*inputs), theirs.logits(*inputs))


@pytest.mark.parametrize(
    ("name", "projection", "stages"),
    [
        ("CLIPTextModel", None, ["text transformer.resblocks.0", "text ln_final"]),
        ("CLIPTextModelWithProjection", 24, ["text transformer.resblocks.0", "text ln_final"]),
        ("CLIPVisionModel", None, ["preprocessing", "image conv1", "image ln_pre"]),
        ("CLIPVisionModelWithProjection", 24, ["preprocessing", "image conv1", "image ln_pre"]),
    ],
)
def test_one_tower_alone_is_compared_with_transformers_class(
    name, projection, stages, tmp_path, capsys
):
    transformers = peer("transformers")
    sizes = {"hidden_size": 60, "intermediate_size": 88, "num_attention_heads": 3}
    tower = "Text" if "Text" in name else "Vision"
    own = {"max_position_embeddings": 20} if tower == "Text" else {"image_size": 32}
    options = {**sizes, **own, "num_hidden_layers": 1, "projection_dim": projection or 512}
    with quiet():
        config = getattr(transformers, f"CLIP{tower}Config")(**options)
        randomized(getattr(transformers, name)(config)).save_pretrained(tmp_path / "model")
    capsys.readouterr()
    document, err = document_of(capsys, tmp_path / "model")
    assert document["ok"] and err == ""
    given = [row["stage"] for row in document["rows"]]
    assert given[: len(stages)] == stages and given[-1] == f"{stages[-1].split()[0]} features"


def in_flax(arrays):
    """Arrays by PyTorch's names as the nested tree of transformers 4's Flax classes."""
    tree = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        if leaf == "weight":
            kinds = {1: "scale", 2: "kernel", 4: "kernel"}
            leaf = "embedding" if "n_embedding" in path[-1] else kinds[array.ndim]
            if leaf == "kernel":
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = np.array(array, order="C")
    return tree


def test_flaxs_msgpack_is_exported_for_transformers_which_does_not_read_it(
    of_transformers, tmp_path
):
    flax = pytest.importorskip("flax.serialization")
    arrays = load_file(of_transformers / "model.safetensors")
    (tmp_path / "config.json").write_bytes((of_transformers / "config.json").read_bytes())
    (tmp_path / "flax_model.msgpack").write_bytes(flax.msgpack_serialize(in_flax(arrays)))
    given = load_huggingface(tmp_path).model.state_dict()
    assert given.keys() == arrays.keys()
    assert all(np.array_equal(given[name], array) for name, array in arrays.items())


def test_a_native_folder_of_another_architecture_is_exported_for_openclip(tmp_path, capsys):
    peer("open_clip")
    gelu = dataclasses.replace(SMALL_VIT, activation="gelu")
    save_parameters(gelu, random_parameters(gelu), tmp_path / "native")
    document, err = document_of(capsys, tmp_path / "native")
    assert (document["peer"], document["ok"], err) == ("open_clip_torch", True, "")
    # Towers of two activations, one of them QuickGELU, are Hugging Face's alone.
    save_parameters(HUGGING_FACE, random_parameters(HUGGING_FACE), tmp_path / "mixed")
    assert main(["parity", str(tmp_path / "mixed")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "towers of different activations" in err


@pytest.fixture(scope="module")
def loaded(of_open_clip, of_transformers):
    """Both sides of the two folders."""
    subjects = [find_subject(folder) for folder in (of_open_clip, of_transformers)]
    return {subject.library: (*subject.load(), subject.load_peer()) for subject in subjects}


def perturbed(model, name, change):
    arrays = flatten(parameters(model))
    arrays[name] = change(np.array(arrays[name]))
    return from_parameters(model.config, unflatten(arrays))


@pytest.mark.parametrize(
    ("library", "name", "stage"),
    [
        ("open_clip_torch", "visual/ln_post/bias", "image ln_post"),
        ("open_clip_torch", "text_projection/bias", "text features"),
        ("open_clip_torch", "logit_bias", "logits"),
        ("transformers", "visual/transformer/resblocks/1/attn/in_proj/bias", "image transformer.r"),
        ("transformers", "transformer/resblocks/0/mlp/c_fc/kernel", "text transformer.resblocks.0"),
        ("transformers", "visual/ln_post/scale", "image ln_post"),
    ],
)
def test_a_broken_weight_is_found_where_it_is(loaded, library, name, stage):
    model, preprocess, tokenizer, theirs = loaded[library]
    broken = perturbed(model, name, lambda x: x + 1e-2)
    # On the default inputs, for which programs are compiled already.
    rows = compare(broken, preprocess, theirs, tokenizer=tokenizer)
    culprit = first_difference(rows)
    assert culprit is not None and culprit.stage.startswith(stage)


def test_pixels_and_ids_are_the_librarys_own(loaded):
    """OpenAI's differ from transformers', which the rows show."""
    from clip_jax.preprocess import Preprocess

    model, preprocess, tokenizer, theirs = loaded["transformers"]
    rows = compare(model, Preprocess(32), theirs)
    assert [row.stage for row in rows if not row.ok][:2] == ["preprocessing", "tokens"]
    assert first_difference(compare(model, preprocess, theirs, tokenizer=tokenizer)) is None


@pytest.mark.filterwarnings("default:the model's vocabulary")
def test_a_tokenizer_that_is_not_at_hand_leaves_its_row_out(tmp_path, capsys):
    text = {**MODEL_CFG["text_cfg"], "vocab_size": 99, "hf_tokenizer_name": "bert-base-uncased"}
    cfg = {**MODEL_CFG, "text_cfg": {**text, "pool_type": "eos", "eos_id": 2}}
    document, err = document_of(capsys, open_clip_folder(tmp_path / "model", cfg))
    assert document["ok"]
    assert [row["stage"] for row in document["rows"]] == ["preprocessing", *VIT_STAGES]
    assert "vocabulary has 99 ids" in err and len(err.splitlines()) == 1


def test_a_missing_library_is_one_line_that_names_the_extra(
    of_open_clip, of_transformers, monkeypatch, capsys
):
    for folder, library in ((of_open_clip, "open_clip"), (of_transformers, "transformers")):
        monkeypatch.setitem(sys.modules, library, None)
        assert main(["parity", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1
        assert f"no module {library}" in err and "pip install 'clip-jax-flax[reference]'" in err


def test_weights_that_the_library_does_not_find_are_an_error(tmp_path, of_transformers):
    """It would take random ones in their place."""
    folder = open_clip_folder(tmp_path / "open_clip", MODEL_CFG)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="open_clip can't load"):
        load_open_clip(folder)
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "hf")
    arrays = load_file(tmp_path / "hf" / "model.safetensors")
    del arrays["visual_projection.weight"]
    save_file(arrays, tmp_path / "hf" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="transformers can't load .* no visual_projection"):
        load_huggingface(tmp_path / "hf")


def test_what_cannot_be_compared_is_one_line(of_open_clip, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 no")
    for arguments, message in {
        (tmp_path / "other",): "of the type bert",
        (tmp_path / "nothing",): "neither the name of a model nor a file or folder",
        (of_open_clip, "--model", "ViT-H-14"): "is no file",
        (of_open_clip, "--activation", "gelu"): "only for bare files",
        (tmp_path / "weights.pt", "--model", "ViT-H"): "must be the name of one of OpenCLIP's",
        (tmp_path / "weights.pt", "--model", "ViT-H-14", "--activation", "gelu"): "weights.pt",
    }.items():
        assert main(["parity", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and message in err, arguments
