"""`ImageEmbedder` in other people's pipelines."""

import ast
import io
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import ImageEmbedder, PictureOptions, embed
from tests.embedding_jobs import rows
from tests.pictures import noise

pytestmark = pytest.mark.long

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def embedder(model) -> ImageEmbedder:
    return ImageEmbedder(model, batch_size=8)


def vectors(batch: dict) -> np.ndarray:
    """The embeddings of a batch, none of them null."""
    return np.array(batch["embedding"].to_pylist(), np.float32)


def test_embeddings_are_those_of_a_job_to_the_bit(embedder, model, tmp_path):
    pictures = [noise(i) for i in range(11)]
    (tmp_path / "in").mkdir()
    for i, data in enumerate(pictures):
        (tmp_path / "in" / f"{i:02d}.png").write_bytes(data)
    embed(tmp_path / "in", model, tmp_path / "out", batch_size=8, progress=False)
    expected = np.array(rows(tmp_path / "out")["embedding"], np.float32)
    for column in (
        pictures,
        np.array(pictures, object),
        [{"bytes": d, "path": 1} for d in pictures],
    ):
        found = embedder({"image": column, "id": list(range(11))})
        assert list(found) == ["image", "id", "embedding", "reason"]
        np.testing.assert_array_equal(vectors(found), expected)
        assert found["reason"].null_count == 11
    assert found["embedding"].type == pa.list_(pa.float32(), 16)
    assert found["id"] == list(range(11))


def test_sent_by_pickle_it_is_made_again_with_the_same_arguments(model, tmp_path):
    clip_jax.save(model, tmp_path / "model")
    options = PictureOptions(fit="squash")
    for given in (model, tmp_path / "model"):
        embedder = ImageEmbedder(given, column="x", embedding="e", batch_size=2, pictures=options)
        sent = pickle.dumps(embedder)
        assert len(sent) < 2_000 or given is model
        batch = {"x": [noise(0), noise(1, (20, 60)), None]}
        expected, found = embedder(batch), pickle.loads(sent)(batch)
        assert list(found) == ["x", "e", "reason"] and found["e"].equals(expected["e"])


def test_bytes_paths_arrays_and_images_of_one_picture_are_embedded_alike(embedder, tmp_path):
    (tmp_path / "a.png").write_bytes(noise(3))
    image = Image.open(io.BytesIO(noise(3))).convert("RGB")
    column = [noise(3), str(tmp_path / "a.png"), tmp_path / "a.png", np.asarray(image), image]
    column += [{"bytes": None, "path": str(tmp_path / "a.png")}]
    found = vectors(embedder({"image": column}))
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))


def test_rows_that_fail_have_a_reason_and_no_embedding(embedder, tmp_path):
    column = [b"", noise(0), None, str(tmp_path / "none.png"), np.zeros((2, 2, 7), np.uint8)]
    found = embedder({"image": column})
    assert [x is None for x in found["embedding"].to_pylist()] == [True, False, True, True, True]
    reasons = found["reason"].to_pylist()
    assert reasons[1] is None
    assert reasons[2:4] == ["no picture", "No such file or directory"]
    assert all(reasons[i] for i in (0, 4))
    none = embedder({"image": [None]})
    assert none["embedding"].null_count == 1
    assert len(embedder({"image": []})["embedding"]) == 0


def test_columns_that_lack_or_clash_are_named(embedder):
    with pytest.raises(ValueError, match="the batch has no column 'image'. It has 'bytes'"):
        embedder({"bytes": []})
    with pytest.raises(ValueError, match="the batch has a column 'reason' already"):
        embedder({"image": [], "reason": []})


def run_page(library: str, folder: Path, model: clip_jax.CLIP, monkeypatch) -> Path:
    """Runs the code of docs/guides/clusters.md that imports a library; gives the folder."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "clusters.md").read_text()
    codes = re.findall(r"^```py$(.*?)^```$", page, re.M | re.S)
    (code,) = (code for code in codes if re.search(rf"^(import|from) {library}\b", code, re.M))
    clip_jax.save(model, folder / "model")
    (folder / "pictures").mkdir()
    for i in range(6):
        (folder / "pictures" / f"{i}.jpg").write_bytes(noise(i) if i != 4 else b"broken")
    code = code.replace('"ViT-B/32"', repr(str(folder / "model")))
    for name in ("pictures", "embeddings"):
        code = code.replace(f'("{name}', f'("{folder / name}')
    monkeypatch.chdir(folder)
    exec(compile(code, "clusters.md", "exec"), {"__name__": "__main__"})
    return folder


def check_page(found: list[dict], embedder: ImageEmbedder) -> None:
    """What the code of a page has written is what the class gives."""
    found.sort(key=lambda row: row["path"])
    assert [row["path"].rpartition("/")[2] for row in found] == [f"{i}.jpg" for i in range(6)]
    here = embedder({"image": [noise(i) if i != 4 else b"broken" for i in range(6)]})
    for row, expected, reason in zip(
        found, here["embedding"].to_pylist(), here["reason"].to_pylist(), strict=True
    ):
        assert row["reason"] == reason
        if expected is None:
            assert row["embedding"] is None
        else:
            np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)  # another batch size


def parquet_rows(folder: Path) -> list[dict]:
    """The rows of a folder of Parquet files."""
    import pyarrow.parquet as pq

    return [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]


def test_ray_data_maps_batches(model, embedder, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=2, **how)
        data.DataContext.get_current().enable_progress_bars = False
        try:
            run_page("ray", tmp_path, model, monkeypatch)
        finally:
            ray.shutdown()
    check_page(parquet_rows(tmp_path / "embeddings"), embedder)


def test_spark_maps_batches(model, embedder, tmp_path, monkeypatch):
    pytest.importorskip("pyspark")
    pytest.importorskip("pandas")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    run_page("pyspark", tmp_path, model, monkeypatch)
    check_page(parquet_rows(tmp_path / "embeddings"), embedder)


def test_beam_runs_inference(model, embedder, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    run_page("apache_beam", tmp_path, model, monkeypatch)
    lines = [line for path in tmp_path.glob("embeddings-*") for line in path.open()]
    check_page([ast.literal_eval(line) for line in lines], embedder)
