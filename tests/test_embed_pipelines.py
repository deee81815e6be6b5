"""`ImageEmbedder` in other people's pipelines."""

import io

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import ImageEmbedder, embed
from tests.embedding_jobs import rows
from tests.pictures import noise

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


@pytest.fixture
def ray_data():
    """Ray Data with a small cluster of its own."""
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        data.DataContext.get_current().enable_progress_bars = False
        yield data
        ray.shutdown()


def test_ray_data_maps_batches(ray_data, model, embedder, tmp_path):
    clip_jax.save(model, tmp_path / "model")
    items = [{"image": noise(i) if i != 4 else b"broken", "id": i} for i in range(10)]
    found = ray_data.from_items(items).map_batches(
        ImageEmbedder,
        fn_constructor_kwargs={"model": str(tmp_path / "model"), "batch_size": 8},
        batch_size=4,
        compute=ray_data.ActorPoolStrategy(size=1),
    )
    there = sorted(found.take_all(), key=lambda row: row["id"])
    here = embedder({"image": [item["image"] for item in items]})
    assert [row["id"] for row in there] == list(range(10))
    assert [row["embedding"] for row in there] == here["embedding"].to_pylist()
    assert [row["reason"] for row in there] == here["reason"].to_pylist()
    assert there[4]["embedding"] is None
