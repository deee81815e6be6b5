"""Data sets as the Hugging Face Hub has them: Parquet files with pictures as structs, streamed."""

import json

import pytest

from clip_jax.embed import embed
from clip_jax.evaluate import zeroshot
from clip_jax.sources import Columns, open_input, open_pairs, read_picture
from tests.archives import parquet, rows_of
from tests.embedding_jobs import QUIET, lasting, rows
from tests.pictures import noise

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")

NAMES = ["cat", "dog"]


def data_set(path, numbers, image: str = "img", features: dict | None = None, **columns):
    """A Parquet file as `datasets` writes it: pictures of those numbers, and their labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": noise(i), "path": f"{i}.png"} for i in numbers]
    table = pa.table(
        {image: pictures, "label": [i % 2 for i in numbers]}
        | {name: [value(i) for i in numbers] for name, value in columns.items()}
    )
    told = {image: {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    document = {"info": {"features": told | (features or {})}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(document)})
    import pyarrow.parquet as pq

    pq.write_table(table, path, row_group_size=4)
    return path


@pytest.fixture
def local(tmp_path):
    """A copy of a data set, as `hf download` leaves it."""
    folder = tmp_path / "pets"
    data_set(folder / "data" / "train-00000-of-00002.parquet", range(6))
    data_set(folder / "data" / "train-00001-of-00002.parquet", range(6, 10))
    data_set(folder / "data" / "test-00000-of-00001.parquet", range(10, 13))
    (folder / "README.md").write_text("a card")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.parquet").write_text("no table")
    return folder


def test_a_copy_of_a_data_set_is_embedded_with_the_names_of_its_classes(local, model, tmp_path):
    out = tmp_path / "out"
    summary = embed(local, model, out, columns=Columns(others=("label",)), **QUIET)
    assert summary.rows == 13 and not summary.errors
    (remark,) = summary.remarks
    assert "all 3 Parquet files" in remark and f"{local}/data/test*.parquet" in remark
    found = rows(out)
    assert found["label"][:4] == [NAMES[i % 2] for i in range(10, 13)] + ["cat"]
    assert read_picture(found["path"][0], "img") == noise(10)
    pattern = str(local / "data" / "train-*.parquet")
    assert len(rows_of(pattern)) == 10
    assert embed(pattern, model, tmp_path / "train", where="label=dog", **QUIET).rows == 5


def test_hidden_labels_have_no_name_and_unknown_ones_their_number(tmp_path):
    path = data_set(tmp_path / "a.parquet", [0, 1, 2], other=lambda i: (-1, 5, None)[i])
    table = pa.parquet.read_table(path)
    names = {"names": NAMES, "_type": "ClassLabel"}
    features = {"img": {"_type": "Image"}, "label": names, "other": names}
    document = json.dumps({"info": {"features": features}})
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": document}), path)
    found = rows_of(path, Columns(others=("label", "other")))
    assert [row.columns["label"] for row in found] == ["cat", "dog", "cat"]
    assert [row.columns["other"] for row in found] == [None, "5", None]


def test_a_data_set_is_evaluated_and_trained_on(local, model):
    result = zeroshot(str(local), model, where="label in cat,dog", progress=False)
    assert result.class_names == NAMES and result.scores.count == 13
    data_set(local / "data" / "train-00000-of-00001.parquet", range(3), text=lambda i: f"pet {i}")
    pairs = open_pairs(local / "data" / "train-00000-of-00001.parquet")
    assert [pairs[i].captions for i in range(3)] == [(f"pet {i}",) for i in range(3)]
    for path in local.glob("data/*-of-00002.parquet"):
        path.unlink()
    (local / "data" / "test-00000-of-00001.parquet").unlink()
    assert len(open_pairs(local)) == 3


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": [1]}}', b"\xff"])
def test_damaged_metadata_say_nothing(metadata, tmp_path):
    path = data_set(tmp_path / "a.parquet", range(3))
    table = pa.parquet.read_table(path).replace_schema_metadata({"huggingface": metadata})
    pa.parquet.write_table(table, path)
    assert [row.read() for row in rows_of(path)] == [noise(i) for i in range(3)]


COLUMNS = {
    "int64": lambda: pa.array([1, 2]),
    "list<": lambda: pa.array([[[1, 2]], [[3, 4]]]),
    "struct<": lambda: pa.array([{"array": [1.0], "sampling_rate": 8000}] * 2),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_that_is_no_pictures_is_one_error_before_any_row(kind, model, tmp_path):
    table = {"image": COLUMNS[kind](), "caption": ["a", "b"]}
    source = parquet(tmp_path / "a.parquet", table)
    message = f"a.parquet: the column 'image' is {kind}.*expected pictures"
    for options in ({}, {"what": "images"}, {"what": "both"}):
        with pytest.raises(ValueError, match=message):
            embed(source, model, tmp_path / "out", **options, **QUIET)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="'image' is"):
        open_pairs(source)
    with pytest.raises(ValueError, match=message):
        zeroshot(source, model, label_column="caption", progress=False)
    assert embed(source, model, tmp_path / "out", what="texts", **QUIET).rows == 2


def test_sounds_and_two_columns_of_pictures_are_told_apart(model, tmp_path):
    sound = {"audio": {"_type": "Audio"}, "image": {"_type": "Audio"}}
    path = data_set(tmp_path / "a.parquet", range(2), image="image", features=sound)
    with pytest.raises(ValueError, match="'image' is of the kind Audio"):
        embed(path, model, tmp_path / "out", **QUIET)
    path = data_set(tmp_path / "b.parquet", range(2), thumb=lambda i: {"bytes": b"", "path": "x"})
    with pytest.raises(ValueError, match="either of 'img' and 'thumb' may be meant: .*image_colu"):
        open_input(path)
    assert rows_of(path, Columns(image="img"))[1].read() == noise(1)
    with pytest.raises(ValueError, match="pictures are taken by image_column='img' or image_colu"):
        embed(path, model, tmp_path / "out", columns=Columns(image="label"), **QUIET)


def test_a_parts_folder_is_no_data_set(local, model, tmp_path):
    embed(local, model, tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="no pictures"):
        open_input(tmp_path / "out")


@pytest.fixture
def hub(monkeypatch, local):
    """A Hub with that data set."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    from tests.fake_data_sets import DataSets

    hub = DataSets()
    hub.files["zoo/pets"] = {
        str(path.relative_to(local)): path.read_bytes()
        for path in local.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield hub
    huggingface_hub.HfFileSystem.clear_instance_cache()
    hub.close()


def test_a_data_set_of_the_hub_is_streamed_and_equals_its_copy(hub, local, model, tmp_path):
    embed(local, model, tmp_path / "copy", rows_per_part=2, **QUIET)
    address, out = "hf://datasets/zoo/pets", tmp_path / "out"
    assert embed(address, model, out, rows_per_part=2, **QUIET).rows == 13
    copy, found = rows(tmp_path / "copy"), rows(out)
    assert found["embedding"] == copy["embedding"] and found["key"] == copy["key"]
    there = lasting(out)
    (out / "part-000001-000001.parquet").unlink()
    hub.sent.clear()
    summary = embed(address, model, out, rows_per_part=2, **QUIET)
    assert (summary.rows, summary.rows_before) == (2, 11) and lasting(out) == there
    # The versions of the other files show that they are the same: they aren't read again.
    assert "data/train-00001-of-00002.parquet" not in {path for path, _ in hub.sent[3:]}
    assert read_picture(found["path"][0], "img") == noise(10)
    some = embed(f"{address}/data/train-*.parquet", model, tmp_path / "train", **QUIET)
    assert some.rows == 10


def test_what_is_wrong_at_the_hub_is_one_sentence(hub, model, tmp_path, monkeypatch):
    with pytest.raises((OSError, ValueError), match="zoo/dogs"):
        embed("hf://datasets/zoo/dogs", model, tmp_path / "out", **QUIET)
    with pytest.raises(ValueError, match="hf download --repo-type dataset zoo/pets --local-dir"):
        open_pairs("hf://datasets/zoo/pets")
    with pytest.raises(FileNotFoundError, match="a data set of the Hub is hf://datasets/zoo/pets"):
        embed("zoo/pets", model, tmp_path / "out", **QUIET)
    hub.gated.add("zoo/pets")
    with pytest.raises(OSError, match="zoo/pets.*403"):
        embed("hf://datasets/zoo/pets", model, tmp_path / "out", **QUIET)
    import fsspec

    def missing(protocol):
        raise ImportError("Install huggingface_hub to access HfFileSystem")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'clip-jax-flax\[hub\]'"):
        open_input("hf://datasets/zoo/pets")
