"""What errors about weights advise is followed, and works."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clip_jax.catalog import CATALOG
from clip_jax.cli import main
from clip_jax.convert.pytorch import to_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError, DownloadError
from clip_jax.nn import parameters
from clip_jax.weights import load, native_folder, official_file, read_native, save
from tests.model_files import VIT, same
from tests.models import random_parameters, small, unsaid, unsaid_options
from tests.pickles import entries_of, parts, program, zipped

EXPECTED = {name: np.asarray(a) for name, a in to_pytorch(VIT, random_parameters(VIT)).items()}


def refused(path: Path, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path, **(unsaid(VIT) if path.is_file() else {}))
    for text in said:
        assert text in str(caught.value)


def is_whole(path: Path) -> bool:
    found = read_checkpoint(path)
    load(path, **unsaid(VIT))
    return all(np.array_equal(found[name], array) for name, array in EXPECTED.items())


def entries() -> list[tuple[str, bytes]]:
    tensors, storages = parts(EXPECTED)
    return entries_of(program(tensors), storages)


# ---- without PyTorch ----------------------------------------------------------------------------


def test_a_damaged_copy_of_a_named_model_is_removed_and_made_again(tiny):
    load("tiny")
    folder = native_folder("tiny")
    for name in ("model.safetensors", "config.json"):
        with open(folder / name, "r+b") as file:
            file.truncate(100)
        with pytest.raises(CheckpointError) as caught:
            load("tiny")
        assert f"it is a converted copy: remove {folder}, and load tiny again" in str(caught.value)
        shutil.rmtree(folder)
        load("tiny")
    assert len(tiny.requests) == 1  # the official file was there


def test_a_file_put_there_by_hand_is_taken(tiny, monkeypatch):
    tiny.status = [404]
    with pytest.raises(DownloadError) as caught:
        load("tiny")
    address, _, place = (
        str(caught.value).partition("By hand: fetch ")[2].partition(" and save it as ")
    )
    assert address == CATALOG["tiny"].url
    Path(place).write_bytes(tiny.body)
    load("tiny")
    assert len(tiny.requests) == 1


def test_another_folder_is_chosen_where_one_can_not_be_written(tiny, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(DownloadError, match="download_root= or the environment variable"):
        official_file("tiny", progress=False)
    official_file("tiny", tmp_path / "root", progress=False)
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "other"))
    assert official_file("tiny", progress=False).parent == tmp_path / "other"


def test_compressed_entries_are_stored_by_another_zip(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(zipped(entries(), zipfile.ZIP_DEFLATED))
    refused(path, "is compressed", "repack the file with `zip -0`")
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(path, unpacked, "zip")
    if shutil.which("zip"):
        assert os.system(f"cd {unpacked} && zip -q -0 -r ../stored.pt x") == 0
    else:
        with zipfile.ZipFile(tmp_path / "stored.pt", "w") as archive:
            for file in sorted(unpacked.rglob("*")):
                archive.write(file, file.relative_to(unpacked))
    assert is_whole(tmp_path / "stored.pt")


def test_a_checkpoint_named_as_weights_of_a_folder_is_given_by_itself(model_folder, tmp_path):
    weights = model_folder / "model.safetensors"
    weights.write_bytes(zipped(entries()))
    refused(
        model_folder, "is a ZIP archive", "give this file to clip_jax.load or `clip-jax convert`"
    )
    assert is_whole(weights)
    assert main(["convert", str(weights), str(tmp_path / "new")]) == 0
    load(tmp_path / "new")


def test_weights_out_of_their_folder_are_given_with_it(model_folder, tmp_path):
    refused(model_folder / "model.safetensors", "give the folder that holds it", "config.json")
    load(model_folder)


def test_a_folder_of_openclip_without_description_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file(EXPECTED, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text("{}")
    refused(tmp_path, "model_cfg: expected an object")
    (tmp_path / "open_clip_config.json").unlink()
    assert is_whole(tmp_path / "open_clip_model.safetensors")


def test_a_place_that_is_taken_is_freed_or_replaced(model_folder, tmp_path, capsys):
    source, target = tmp_path / "a.pt", tmp_path / "target"
    source.write_bytes(zipped(entries()))
    shutil.copytree(model_folder, target)
    command = ["convert", str(source), str(target), *unsaid_options(VIT)]
    assert main(command) == 1
    assert "exists already; --force replaces it" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert same(read_native(target)[1], parameters(load(source, **unsaid(VIT))[0]))
    (target / "notes.txt").write_text("more")
    assert main([*command, "--force"]) == 1
    assert "choose another name, or remove it first" in capsys.readouterr().err
    (target / "config.json").unlink()
    for option in ([], ["--force"]):  # not advised to do what is refused then
        assert main([*command, *option]) == 1
        error = capsys.readouterr().err
        assert "something else than a model: choose another name" in error
        assert "--force" not in error
    shutil.rmtree(target)
    assert main(command) == 0


def test_a_model_of_a_newer_format_is_converted_again(model_folder, tmp_path):
    path = model_folder / "model.safetensors"
    data = path.read_bytes()
    assert b'"version": "1"' in data
    path.write_bytes(data.replace(b'"version": "1"', b'"version": "9"', 1))
    refused(model_folder, "is of version 9", "convert the model again")
    save(small(VIT), model_folder)
    load(model_folder)


# ---- with PyTorch -------------------------------------------------------------------------------


def tensors_of(torch) -> dict:
    return {name: torch.tensor(array) for name, array in EXPECTED.items()}


@pytest.mark.torch
def test_files_of_before_pytorch_1_6_need_no_advice(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "old.pt"
    torch.save(tensors_of(torch), path, _use_new_zipfile_serialization=False)
    assert is_whole(path)


@pytest.mark.torch
def test_a_pickled_object_is_saved_again_as_its_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    path, file = tmp_path / "whole.pt", io.BytesIO()
    root = torch.nn.Module()
    for name, tensor in tensors_of(torch).items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        module.register_parameter(leaf, torch.nn.Parameter(tensor))
    torch.save(root, file)
    path.write_bytes(file.getvalue())
    refused(path, "if you trust it, load it in PyTorch and torch.save the model's state_dict()")
    torch.save(torch.load(path, weights_only=False).state_dict(), path)
    assert is_whole(path)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("spoil", "mend", "said"),
    [
        ("to_sparse", "to_dense", "convert the others (.float(), .to_dense(), .dequantize())"),
        ("cfloat", "real", "convert the others (.float()"),
        ("_neg_view", "resolve_neg", "call resolve_neg() or resolve_conj(), and save it again"),
    ],
)
def test_tensors_that_are_not_plain_are_converted_in_pytorch(tmp_path, spoil, mend, said):
    torch = pytest.importorskip("torch")
    path, state = tmp_path / "a.pt", tensors_of(torch)
    name = "text_projection"
    state[name] = getattr(state[name], spoil)()
    torch.save(state, path)
    refused(path, said)
    state = torch.load(path, weights_only=True)
    value = getattr(state[name], mend)
    state[name] = (value if mend == "real" else value()).contiguous()
    if spoil == "_neg_view":
        state[name] = -state[name]
    torch.save(state, path)
    assert is_whole(path)


@pytest.mark.torch
def test_one_of_two_sets_of_weights_is_saved_again_by_itself_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    path, state = tmp_path / "a.pt", tensors_of(torch)
    doubled = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "model": doubled}, path)
    refused(path, "torch.save the one that is meant, by itself")
    torch.save(torch.load(path, weights_only=True)["state_dict"], path)
    assert is_whole(path)


@pytest.mark.torch
def test_safetensors_of_other_types_are_converted_in_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path, state = tmp_path / "a.safetensors", tensors_of(torch)
    name = "ln_final.bias"
    save_file(state | {name: state[name].to(torch.float8_e5m2)}, path)
    refused(path, "convert such tensors (.float()) and save it again")
    found = load_file(path)
    save_file(found | {name: found[name].float()}, path)
    load(path, **unsaid(VIT))


@pytest.mark.torch
@pytest.mark.filterwarnings("always")
def test_what_a_pt_file_can_not_say_is_said_with_it(model_folder, tmp_path, capsys):
    pytest.importorskip("torch")
    text = (model_folder / "config.json").read_text()
    (model_folder / "config.json").write_text(text.replace("quick_gelu", "gelu"))
    out = tmp_path / "a.pt"
    assert main(["convert", str(model_folder), str(out)]) == 0
    assert 'activation="gelu" to clip_jax.load' in capsys.readouterr().err
    assert load(out, activation="gelu", num_heads=1)[0].config.activation == "gelu"
    options = ["--activation", "gelu", "--num-heads", "1"]
    assert main(["convert", str(out), str(tmp_path / "again"), *options]) == 0
    assert load(tmp_path / "again")[0].config.activation == "gelu"
