"""What `ImageEmbedder` takes for a batch, and what it says of anything else."""

from typing import Any

import numpy as np
import pytest

from clip_jax.embed import ImageEmbedder, embed
from tests.pictures import noise

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def embedder(model) -> ImageEmbedder:
    return ImageEmbedder(model, batch_size=4)


def test_arrows_tables_and_columns_are_batches_like_any_other(embedder):
    table = pa.table({"image": [noise(0), None, noise(1)], "id": [1, 2, 3]})
    expected = embedder({"image": [noise(0), None, noise(1)]})
    for batch in (table, table.to_batches()[0], {"image": table["image"]}):
        found = embedder(batch)
        assert found["embedding"].equals(expected["embedding"])
        assert found["reason"].to_pylist() == [None, "no picture", None]
        assert list(found)[-2:] == ["embedding", "reason"]


@pytest.mark.parametrize(
    "batch, expected",
    [
        ([noise(0)], "expected a batch of columns by their names"),
        ({"image": noise(0)}, "expected a column 'image' of several pictures"),
        ({"image": "a.jpg"}, "expected a column 'image' of several pictures"),
        ({"image": 3}, "expected a column 'image' of several pictures"),
    ],
)
def test_what_is_no_batch_is_refused_without_a_word_of_its_content(embedder, batch, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        embedder(batch)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    "shape, dtype", [((3, 9, 9), "uint8"), ((9, 9, 3), "float32"), ((9, 9, 3), "int64"), (5, "u1")]
)
def test_arrays_that_are_no_pixels_are_told_by_shape_and_type(embedder, shape, dtype):
    pixels = np.zeros(shape, dtype)
    (reason,) = embedder({"image": [pixels]})["reason"].to_pylist()
    assert reason == (
        f"expected an array of pixels, (h, w, 3) or (h, w) uint8. Got {pixels.shape} {pixels.dtype}"
    )


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"embedding": "reason"}, "column, embedding and reason must be three different names"),
        ({"embedding": "image"}, "column, embedding and reason must be three different names"),
        ({"preset": "best"}, "preset must be one of 'parity', 'fast'. Got 'best'"),
        ({"num_threads": 0}, "num_threads must be an int of at least 1. Got 0"),
        ({"batch_size": "8"}, "batch_size must be an int of at least 1. Got '8'"),
    ],
)
def test_options_out_of_range_are_refused(model, options, expected):
    with pytest.raises(ValueError, match=expected):
        ImageEmbedder(model, **options)


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("option", ["batch_size", "num_threads"])
def test_a_job_refuses_the_same_before_anything_starts(model, pictures, tmp_path, engine, option):
    options: dict[str, Any] = {option: -1, "engine": engine}
    with pytest.raises(ValueError, match=f"{option} must be an int of at least 1. Got -1"):
        embed(pictures, model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
