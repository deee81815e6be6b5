"""`clip-jax parity`: equal models pass, and whatever is different is found, at its place."""

import dataclasses
import json

import numpy as np
import pytest

import clip_jax
from clip_jax.cli import main
from clip_jax.convert import from_pytorch, read_checkpoint
from clip_jax.nn import flatten, unflatten
from clip_jax.parity import Row, compare, first_difference, load_reference, pictures
from clip_jax.weights import save_parameters
from tests import reference
from tests.models import SMALL_RESNET, SMALL_VIT, reference_numbers, unsaid, unsaid_options

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not reference.available(), reason="the PyTorch reference is not installed"),
]

OF_VIT = unsaid_options(SMALL_VIT)


def saved(config, folder, save=reference.save_torchscript):
    model = reference.randomize(reference.build(reference_numbers(config)), seed=1)
    save(model, folder / "model.pt")
    return folder / "model.pt"


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """An official-format archive of a ViT, and the same in PyTorch."""
    path = saved(SMALL_VIT, tmp_path_factory.mktemp("vit"))
    return path, load_reference(path)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """An official-format archive of a ResNet, and the same in PyTorch."""
    path = saved(SMALL_RESNET, tmp_path_factory.mktemp("resnet"))
    return path, load_reference(path)


def test_archive_of_a_vit_passes_and_every_stage_has_a_row(vit, capsys):
    assert main(["parity", str(vit[0]), *OF_VIT, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["ok"] and document["first_difference"] is None
    assert [row["stage"] for row in document["rows"]] == [
        "preprocessing",
        "tokens",
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
    assert all(row["ok"] for row in document["rows"])


def test_archive_of_a_resnet_passes_and_every_block_has_a_row(resnet):
    path, theirs = resnet
    rows = compare(*clip_jax.load(path, **unsaid(SMALL_RESNET)), theirs)
    assert first_difference(rows) is None
    blocks = [f"image layer{i}.0" for i in (1, 2, 3, 4)]
    assert [row.stage for row in rows][2:8] == ["image avgpool", *blocks, "image features"]


def test_table_is_printed_for_people(vit, tmp_path, capsys):
    pictures()[1].save(tmp_path / "grey.png")
    assert main(["parity", str(vit[0]), *OF_VIT, "--images", str(tmp_path / "grey.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["preprocessing", "0.00e+00", "0.00e+00", "exact", "PASS"]
    assert all(line.endswith("PASS") for line in lines[1:])


def nested(model, path):
    """As training scripts save."""
    torch = reference.torch()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, path)


def safetensors(model, path):
    from safetensors.torch import save_file

    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)


@pytest.mark.parametrize("save", [reference.save_state_dict, nested, safetensors])
def test_float32_state_dicts_pass(tmp_path, save):
    """The reference rounds such weights to float16 as it loads; that must not count."""
    path = saved(SMALL_VIT, tmp_path, save)
    rows = compare(*clip_jax.load(path, **unsaid(SMALL_VIT)), load_reference(path), pictures()[:1])
    assert first_difference(rows) is None


def several(model, path):
    """Under a name that other files have for something else."""
    torch = reference.torch()
    torch.save({"model": model.state_dict(), "state_dict": {"lr": 0.1}}, path)


def none_beside(model, path):
    torch = reference.torch()
    torch.save({"model_state_dict": model.state_dict(), "state_dict": None}, path)


@pytest.mark.parametrize("save", [several, none_beside])
def test_state_dict_is_found_where_we_find_it(tmp_path, save):
    path = saved(SMALL_VIT, tmp_path, save)
    rows = compare(*clip_jax.load(path, **unsaid(SMALL_VIT)), load_reference(path), pictures()[:1])
    assert first_difference(rows) is None


@pytest.mark.filterwarnings("default:the model's vocabulary")
def test_small_vocabulary_is_compared_on_ids_that_fit_it(tmp_path, capsys):
    config = dataclasses.replace(
        SMALL_VIT, text=dataclasses.replace(SMALL_VIT.text, vocab_size=1000)
    )
    path = saved(config, tmp_path, reference.save_state_dict)
    assert main(["parity", str(path), *OF_VIT, "--json"]) == 0
    out, err = capsys.readouterr()
    assert all(row["max_abs"] < 1e-3 for row in json.loads(out)["rows"])
    assert "vocabulary has 1,000 ids" in err and len(err.splitlines()) == 1


def test_native_folder_passes_and_another_activation_is_found(vit, tmp_path, capsys):
    config, params = from_pytorch(read_checkpoint(vit[0]))
    save_parameters(config, params, tmp_path / "native")
    assert main(["parity", str(tmp_path / "native")]) == 0
    capsys.readouterr()

    gelu = clip_jax.from_parameters(dataclasses.replace(config, activation="gelu"), params)
    _, preprocess = clip_jax.load(vit[0], **unsaid(SMALL_VIT))
    culprit = first_difference(compare(gelu, preprocess, vit[1], pictures()[:1]))
    assert culprit is not None and culprit.stage == "image transformer.resblocks.0"


def perturbed(path, name, change):
    """Our model with one array of its checkpoint changed."""
    config, params = from_pytorch(read_checkpoint(path))
    arrays = flatten(params)
    arrays[name] = change(np.array(arrays[name], np.float32))
    return clip_jax.from_parameters(config, unflatten(arrays))


@pytest.mark.parametrize(
    ("name", "change", "stage"),
    [
        ("visual/transformer/resblocks/1/mlp/c_fc/bias", lambda x: x + 1e-3, "image transformer."),
        ("visual/transformer/resblocks/0/attn/out_proj/kernel", np.transpose, "image transformer."),
        ("visual/conv1/kernel", lambda x: x.swapaxes(0, 1), "image conv1"),
        ("visual/proj", lambda x: x * 1.0001, "image features"),
        ("positional_embedding", lambda x: x[::-1], "text transformer.resblocks.0"),
        ("ln_final/scale", lambda x: x * np.nan, "text features"),
        ("logit_scale", lambda x: x + 1e-3, "logits"),
    ],
)
def test_broken_weight_is_found_where_it_is(vit, name, change, stage):
    path, theirs = vit
    _, preprocess = clip_jax.load(path, **unsaid(SMALL_VIT))
    rows = compare(perturbed(path, name, change), preprocess, theirs, pictures()[:1])
    culprit = first_difference(rows)
    assert culprit is not None and culprit.stage.startswith(stage)


def test_swapped_statistics_are_found(resnet):
    path, theirs = resnet
    _, preprocess = clip_jax.load(path, **unsaid(SMALL_RESNET))
    model = perturbed(path, "visual/layer2/0/bn2/mean", lambda x: x[::-1])
    rows = compare(model, preprocess, theirs, pictures()[:1])
    culprit = first_difference(rows)
    assert culprit is not None and culprit.stage == "image layer2.0"


def test_broken_weight_makes_the_command_fail(vit, monkeypatch, capsys):
    path, _ = vit
    _, preprocess = clip_jax.load(path, **unsaid(SMALL_VIT))
    broken = perturbed(path, "visual/proj", lambda x: x * np.nan)
    monkeypatch.setattr("clip_jax.parity.subject.load", lambda _, **__: (broken, preprocess))
    assert main(["parity", str(path), *OF_VIT, "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)  # NaN is null: JSON has none
    assert document["first_difference"] == "image features"
    assert [row["rel"] for row in document["rows"] if row["stage"] == "image features"] == [None]
    assert len(err.splitlines()) == 1 and "image features" in err


def test_other_architecture_is_an_error(vit, resnet):
    model, preprocess = clip_jax.load(vit[0], **unsaid(SMALL_VIT))
    with pytest.raises(ValueError, match="not the same architecture"):
        compare(model, preprocess, resnet[1])


def test_unreadable_file_is_one_line(tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 no")
    assert main(["parity", str(tmp_path / "model.pt")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_row_that_is_not_a_number_never_passes():
    assert Row("x", 0.0, 0.0, 0.0, "absolute").ok
    assert not Row("x", float("nan"), float("nan"), 1.0, "absolute").ok
    assert not Row("x", 0.0, float("nan"), 1.0, "relative").ok


def test_pictures_are_the_same_every_time():
    assert [p.mode for p in pictures()] == ["RGB", "L", "RGBA", "P", "CMYK", "RGB"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(pictures(), pictures(), strict=True))
