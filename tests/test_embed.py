"""Embedding jobs: what they leave."""

import json
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax.embed import Columns, embed, read_embeddings
from clip_jax.nn import normalize
from tests.archives import parquet, write_tar
from tests.embedding_jobs import COUNT, QUIET, contents, errors, expected, rows
from tests.models import SMALL_VIT
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402


def test_every_picture_has_its_row(undisturbed, pictures, model):
    found = rows(undisturbed)
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    assert found["key"] == names
    assert found["path"] == [str(pictures / name) for name in names]
    images = [(pictures / name).read_bytes() for name in names]
    assert np.allclose(found["embedding"], expected(model, images), atol=2e-6)
    assert len(list(undisturbed.glob("part-*.parquet"))) == -(-COUNT // 7)


def test_parts_say_whose_they_are(undisturbed):
    schema = read_embeddings(undisturbed).schema
    item = schema.field("embedding").type
    assert pa.types.is_fixed_size_list(item)
    assert (item.list_size, item.value_type) == (SMALL_VIT.embed_dim, pa.float32())
    assert schema.field("key").type == pa.string()
    about = json.loads(schema.metadata[b"clip_jax"])
    job = json.loads((undisturbed / "job.json").read_text())
    assert about["fingerprint"] == job["fingerprint"]
    assert about["model"] == job["identity"]["model"]


def test_embeddings_lie_in_the_file_as_they_do_in_memory(undisturbed):
    for path in undisturbed.glob("part-*.parquet"):
        file = json.loads(pq.read_metadata(path).metadata[b"clip_jax.file"])
        matrix = np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)
        mapped = np.memmap(path, np.float32, "r", file["at"]["embedding"][0], matrix.shape)
        assert np.array_equal(mapped, matrix)


def test_half_the_disk_is_enough(pictures, undisturbed, model, tmp_path):
    embed(pictures, model, tmp_path, dtype="float16", rows_per_part=16, **QUIET)
    column = read_embeddings(tmp_path).to_table()["embedding"]
    assert column.type.value_type == pa.float16()
    assert np.allclose(column.to_pylist(), rows(undisturbed)["embedding"], atol=5e-4)


def test_texts_alone(model, tmp_path):
    texts = ["a dog", "a cat on a mat", "x " * 200, "a dog"]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    summary = embed(tmp_path / "t.txt", model, tmp_path / "out", **QUIET)
    assert (summary.rows, summary.errors) == (4, 0)
    found = rows(tmp_path / "out")
    assert found["key"] == [f"t.txt:{i}" for i in (1, 2, 3, 4)]
    assert found["caption"] == [text.strip() for text in texts]
    assert "path" not in found
    tokens = clip_jax.tokenize(texts, truncate=True)
    assert np.allclose(found["embedding"], normalize(model.encode_text(tokens)), atol=2e-6)


@pytest.fixture
def pairs(tmp_path) -> Path:
    members = {}
    for i in range(12):
        members[f"{i:02d}.png"] = noise(i)
        members[f"{i:02d}.json"] = json.dumps({"caption": f"number {i}", "n": i}).encode()
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"x.png": noise(50), "y.txt": b"text", "y.png": noise(51)})
    return tmp_path / "*.tar"


def test_pictures_and_texts_of_pairs(pairs, model, tmp_path):
    columns = Columns(others=("n",))
    embed(pairs, model, tmp_path / "o", what="both", columns=columns, rows_per_part=5, **QUIET)
    found = rows(tmp_path / "o")
    assert found["key"] == [*(f"{i:02d}" for i in range(12)), "y"]
    assert found["caption"] == [*(f"number {i}" for i in range(12)), "text"]
    assert found["n"] == [*map(str, range(12)), None]
    assert np.allclose(found["embedding"][-1], expected(model, [noise(51)])[0], atol=2e-6)
    tokens = clip_jax.tokenize(found["caption"])
    assert np.allclose(found["text_embedding"], normalize(model.encode_text(tokens)), atol=2e-6)
    assert errors(tmp_path / "o") == {"x": "no caption"}


def test_pictures_of_pairs_need_no_captions(pairs, model, tmp_path):
    embed(pairs, model, tmp_path / "o", rows_per_part=5, **QUIET)
    found = rows(tmp_path / "o")
    assert found["key"][-2:] == ["x", "y"] and found["caption"][-2:] == [None, "text"]
    assert "text_embedding" not in found
    assert len(list((tmp_path / "o").glob("part-*.parquet"))) == 3 + 1  # none spans files


def test_the_layout_of_clip_retrieval(pairs, model, tmp_path):
    for name, format in (("p", "parquet"), ("n", "npy")):
        embed(pairs, model, tmp_path / name, what="both", format=format, rows_per_part=5, **QUIET)
    parts, folder = rows(tmp_path / "p"), tmp_path / "n"
    for kind, column in (("img", "embedding"), ("text", "text_embedding")):
        files = sorted((folder / f"{kind}_emb").glob(f"{kind}_emb_*.npy"))
        matrix = np.concatenate([np.load(file) for file in files])
        assert np.array_equal(matrix, np.array(parts[column], np.float32))
    files = sorted((folder / "metadata").glob("metadata_*.parquet"))
    table = pa.concat_tables([pq.read_table(file).replace_schema_metadata() for file in files])
    assert table["image_path"].to_pylist() == parts["path"]
    assert table["caption"].to_pylist() == parts["caption"]
    with pytest.raises(ValueError, match="with numpy.load"):
        read_embeddings(folder)
    # An array that is damaged is done again, and so is one that is gone.
    before = contents(folder)
    first, second, *_ = sorted((folder / "img_emb").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    options = {"what": "both", "format": "npy", "rows_per_part": 5}
    assert embed(pairs, model, folder, **options, **QUIET).parts == 2
    assert contents(folder) == before


def test_columns_of_parquet_keep_their_types(model, tmp_path):
    table = {"image": [noise(1), noise(2)], "n": pa.array([3, None], pa.int16()), "t": ["a", "b"]}
    parquet(tmp_path / "in.parquet", table)
    columns = Columns(others=("n", "t"))
    embed(tmp_path / "in.parquet", model, tmp_path / "out", columns=columns, **QUIET)
    found = read_embeddings(tmp_path / "out").to_table()
    assert found["n"].type == pa.int16() and found["n"].to_pylist() == [3, None]
    assert found["key"].to_pylist() == ["in.parquet:0", "in.parquet:1"]
    with pytest.raises(ValueError, match="in the output already: key"):
        columns = Columns(others=("key",), key="t")
        parquet(tmp_path / "2.parquet", table | {"key": ["c", "d"]})
        embed(tmp_path / "2.parquet", model, tmp_path / "out2", columns=columns, **QUIET)
