"""Weights in shards, in folders and in training checkpoints: what is read, what is refused."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from clip_jax.convert import to_huggingface, to_open_clip
from clip_jax.convert.folder import WEIGHTS, read_folder, shards_of, weights_file
from clip_jax.convert.json_file import read_json
from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.rules import Rule
from clip_jax.errors import CheckpointError
from clip_jax.weights import load
from tests import fuzz_checkpoints
from tests.checkpoint_files import assert_same, root_of
from tests.container_mutations import ARRAYS, flax_bytes, two_shards, write_shards
from tests.limits import few_descriptors
from tests.models import SMALL_VIT, random_parameters
from tests.pickles import parts, write
from tests.reference import requires_reference, torch

ONE, TWO = two_shards()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 4_000 and message.isascii()
    return message


# ---- shards -------------------------------------------------------------------------------------


def test_arrays_of_all_shards_come_in_the_order_of_the_index(tmp_path):
    order = {name: ONE if name in two_shards()[ONE] else TWO for name in reversed(ARRAYS)}
    index = write_shards(tmp_path, two_shards(), order)
    found = read_checkpoint(index)
    assert_same(found, dict(reversed(ARRAYS.items())))
    assert all(isinstance(root_of(array), np.memmap) for array in found.values())
    assert shards_of(index) == [tmp_path / TWO, tmp_path / ONE]


def test_shards_of_torch_and_of_flax_are_read_too(tmp_path):
    for name, arrays in two_shards().items():
        write(tmp_path / name.replace(".safetensors", ".bin"), *parts(arrays))
    places = {name: f"model-0000{1 + (i > 2)}-of-00002.bin" for i, name in enumerate(ARRAYS)}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(read_checkpoint(index), ARRAYS)
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    (tmp_path / "a.msgpack").write_bytes(flax_bytes({"text_model": {"fc1": {"kernel": kernel}}}))
    (tmp_path / "b.msgpack").write_bytes(flax_bytes({"logit_scale": kernel[0, 0]}))
    places = {"text_model/fc1/kernel": "a.msgpack", "logit_scale": "b.msgpack"}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = read_checkpoint(index)
    assert list(found) == ["text_model.fc1.weight", "logit_scale"]
    assert np.array_equal(found["text_model.fc1.weight"], kernel.T)


def test_shards_and_index_of_data_parallel_training_agree(tmp_path):
    shards = {
        shard: {f"module.{name}": array for name, array in arrays.items()}
        for shard, arrays in two_shards().items()
    }
    assert_same(read_checkpoint(write_shards(tmp_path, shards)), ARRAYS)


def test_every_problem_of_the_shards_is_in_one_error(tmp_path):
    extra = np.zeros(1, np.float32)
    shards = {
        ONE: {"moved": extra, "twice": extra, "left.over": extra, "here": extra},
        TWO: {"twice": extra},
        "model-3.safetensors": {"more": extra},
    }
    index = {"moved": TWO, "twice": TWO, "here": ONE, "nowhere": TWO, "gone": "gone.safetensors"}
    index |= {"more": "model-3.safetensors"}
    path = write_shards(tmp_path, shards, index)
    (tmp_path / "model-3.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert sorted(refusal(path).splitlines()[1:]) == [
        f"! {tmp_path}/model-3.safetensors: is a Git LFS pointer, expected the file it "
        "stands for: run `git lfs pull`",
        f"! moved: in {ONE}, expected in {TWO}",
        f"! twice: in {TWO} and {ONE}, expected once",
        f"+ left.over: in {ONE}, but not in the index",
        "- gone.safetensors: the file is missing",
        f"- nowhere: missing from {TWO}",
    ]


@pytest.mark.parametrize(
    "name",
    ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b", "c:d"]
    + ["\x1b[2J", "a\0b", "x" * 300, 7, None, ["model.safetensors"]],
)
def test_a_shard_outside_the_folder_is_not_opened(tmp_path, name):
    path = write_shards(tmp_path, {}, {"a": name, "b": "../second"})
    message = refusal(path)
    assert "'../second' is not the name of a file in this folder" in message
    assert "names of files in the same folder" in message and message.count(" is ") >= 2


INDEXES = {
    "no weight_map": ('{"metadata": {}}', "has no weight_map"),
    "a list for a weight_map": ('{"weight_map": ["a"]}', "has no weight_map"),
    "an empty weight_map": ('{"weight_map": {}}', "has no weight_map"),
    "a list": ("[]", "holds a JSON list"),
    "an array twice": ('{"weight_map": {"a": "x", "a": "y"}}', "duplicate names, such as a"),
    "lists in lists": ("[" * 100_000, "nests too deeply"),
    "objects in objects": ('{"a":' * 100_000, "nests too deeply"),
    "half of it": ('{"weight_map": {"a":', "is not valid JSON"),
    "no text": ("\udcff", "is not valid JSON"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
    "many shards": (
        json.dumps({"weight_map": {f"a{i}": f"s{i}" for i in range(501)}}),
        "501 shards, expected at most 500",
    ),
    "many names": (
        json.dumps({"weight_map": {f"a{i}": "s" for i in range(100_001)}}),
        "more than 100,000 names",
    ),
    "17 megabytes": (" " * (17 << 20), "expected at most 16,777,216"),
}


@pytest.mark.parametrize("what", INDEXES)
def test_what_is_no_index_is_refused_in_one_line(tmp_path, what):
    text, expected = INDEXES[what]
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    message = refusal(path)
    assert expected in message and "\n" not in message


def test_two_names_of_flax_for_one_array_are_refused(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(flax_bytes({"a": {"kernel": np.ones((1, 1))}}))
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(("a/kernel", "a/scale"), "a.msgpack")})
    )
    assert "two names of the index mean the same array" in refusal(index)


def test_running_out_of_open_files_is_not_the_shards_fault(tmp_path):
    shards = {f"s{i}.safetensors": {f"a{i}": np.ones(1, np.float32)} for i in range(8)}
    path = write_shards(tmp_path, shards)
    with few_descriptors(4), pytest.raises(OSError, match="Too many open files"):
        read_checkpoint(path)
    assert len(read_checkpoint(path)) == 8


def test_changed_shards_are_read_or_refused(tmp_path):
    counts, failures = fuzz_checkpoints.fuzz(
        "shards", 1, tmp_path, range(200), read=read_checkpoint
    )
    assert failures == {} and counts["refused"] > 25 and counts["loaded"] > 2


# ---- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WEIGHTS)
def test_weights_are_looked_for_in_the_order_of_the_library(tmp_path, family):
    for name in reversed(WEIGHTS[family]):
        (tmp_path / name).write_text("")
        assert weights_file(tmp_path, family) == tmp_path / name


def test_a_folder_is_read_by_its_first_weights(tmp_path):
    write_shards(tmp_path, two_shards())
    (tmp_path / "pytorch_model.bin").write_text("not looked at")
    assert_same(read_folder(tmp_path, "huggingface"), ARRAYS)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        read_folder(tmp_path, "huggingface")
    assert str(caught.value) == (
        f"{tmp_path}: has no weights, expected one of {', '.join(WEIGHTS['huggingface'])}; it has "
        "config.json: download or copy the weights too"
    )
    (tmp_path / "model.ema.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"rename the ones that are meant \(model.ema"):
        read_folder(tmp_path, "open_clip")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_folder(tmp_path / "nothing", "open_clip")


def test_a_configuration_of_any_size_is_refused_at_once(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(CheckpointError, match="104,857,600 bytes, expected at most 1,048,576"):
        read_json(path)
    path.write_text('{"a": ' * 100_000)
    with pytest.raises(CheckpointError, match="nests too deeply"):
        read_json(path)
    with pytest.raises(CheckpointError, match="is no file"):
        read_json(tmp_path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


# ---- training checkpoints, and what isn't read --------------------------------------------------


@requires_reference
def test_a_training_checkpoint_gives_its_model_without_its_optimizer(tmp_path):
    t = torch()
    model = t.nn.Linear(3, 2)
    optimizer = t.optim.AdamW(model.parameters(), lr=1e-3)
    model(t.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / "epoch_1.pt"
    content = {"epoch": 1, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict()}
    t.save(content | {"scaler": {"scale": 65536.0, "_growth_tracker": 0}}, path)
    found = read_checkpoint(path)
    assert list(found) == ["weight", "bias"]
    assert np.array_equal(found["weight"], model.weight.detach().numpy())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kind", ["model.safetensors.index.json", "a.bin", "a.msgpack"])
def test_arrays_that_are_not_used_are_not_read(tmp_path, kind):
    large = {"image": np.ones(64 << 20, np.uint8), "text": np.ones(1 << 20, np.uint8)}
    if kind == "a.bin":
        write(tmp_path / kind, *parts(large))
    elif kind == "a.msgpack":
        (tmp_path / kind).write_bytes(flax_bytes(large))
    else:
        write_shards(tmp_path, {"a.safetensors": large})
    before = resident()
    found = read_checkpoint(tmp_path / kind)
    assert found["text"].sum() == 1 << 20
    assert resident() - before < 32 << 20
    assert found["image"].sum() == 64 << 20 and resident() - before > 32 << 20


# ---- two descriptions of one model --------------------------------------------------------------


@pytest.fixture
def both(tmp_path):
    """A folder with OpenCLIP's files, and Hugging Face's config.json of the same model."""
    to_huggingface(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "hf")
    to_open_clip(SMALL_VIT, random_parameters(SMALL_VIT), tmp_path / "both")
    shutil.copy(tmp_path / "hf" / "config.json", tmp_path / "both" / "config.json")
    return tmp_path / "both"


def test_two_descriptions_that_agree_are_one_model(both):
    assert load(both)[0].config.vision == SMALL_VIT.vision


def test_two_descriptions_that_contradict_each_other_are_refused_with_all_that_differs(both):
    document = json.loads((both / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        document[tower]["hidden_act"] = "gelu"
    document["vision_config"]["num_attention_heads"] = heads = 2 * SMALL_VIT.vision.num_heads
    (both / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError) as caught:
        load(both)
    message, *lines = str(caught.value).splitlines()
    assert "contradict each other" in message and "remove the one that is wrong" in message
    assert lines == [
        "- text.activation: config.json 'gelu', open_clip_config.json 'quick_gelu'",
        "- vision.activation: config.json 'gelu', open_clip_config.json 'quick_gelu'",
        f"- vision.num_heads: config.json {heads}, open_clip_config.json {heads // 2}",
    ]
    (both / "config.json").unlink()
    load(both)


@pytest.mark.parametrize("text", ['{"architecture": "vit_base_patch32_clip_224"}', "[", "{}"])
def test_a_config_of_another_kind_beside_open_clips_is_not_read(both, text):
    (both / "config.json").write_text(text)
    load(both)


@pytest.mark.parametrize("mode", ["r", "c"])
def test_joined_arrays_don_t_stay_in_memory_twice(tmp_path, mode):
    path = tmp_path / "parts"
    np.ones((3, 4 << 20), np.float32).tofile(path)
    whole = np.memmap(path, np.float32, mode, shape=(3, 4 << 20))
    parts = list(whole)
    if mode == "c":
        parts[0][7] = 5  # of this process alone
    rule = Rule("{q,k,v}", "in_proj")
    before = resident()
    joined = rule.to_ours(*parts)
    assert joined.shape == (12 << 20,) and joined[7] == parts[0][7] == (5 if mode == "c" else 1)
    if mode == "r":
        assert resident() - before < 72 << 20  # 48 MB of copies, not as much again of the file
