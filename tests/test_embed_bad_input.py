"""Embedding jobs: a bad picture, file or option costs no more than itself."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image

from clip_jax import storage as storage_module
from clip_jax.embed import Columns, embed, read_embeddings
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, errors, expected, lasting, rows, write_pictures
from tests.pictures import noise, png_of_size, saved

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]
import pyarrow as pa  # noqa: E402


def test_no_value_of_a_column_is_changed_to_fit(model, tmp_path):
    times = pa.array([[1, None]], pa.list_(pa.timestamp("ns")))
    for i, price in enumerate((pa.array([1]), pa.array([1.5]))):
        columns = {"caption": ["x"], "price": price, "times": times, "key": [b"k%d" % i]}
        parquet(tmp_path / f"{i}.parquet", columns)
    options = {"columns": Columns(others=("price", "times")), **QUIET}
    embed(tmp_path / "*.parquet", model, tmp_path / "out", **options)
    table = read_embeddings(tmp_path / "out").to_table()
    assert table["price"].to_pylist() == [1.0, 1.5]
    assert table["times"].type == times.type
    assert table["times"].combine_chunks()[0] == times[0]
    assert table["key"].to_pylist() == ["k0", "k1"]
    parquet(tmp_path / "0.parquet", {"caption": ["x"], "price": pa.array([2**53 + 1])})
    with pytest.raises(ValueError, match="'price', double in the whole input, can't hold 900"):
        embed(
            tmp_path / "*.parquet",
            model,
            tmp_path / "other",
            columns=Columns(others=("price",)),
            **QUIET,
        )


BAD = {
    "bomb.png": (png_of_size(30_000, 30_000), "refused, because it is too large"),
    "cut.jpg": (noise(1, (80, 80), "JPEG")[:2000], "the image is damaged"),
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"I am no picture", "is not an image in a format that Pillow knows"),
}


def odd_pictures() -> dict[str, bytes]:
    """Pictures of kinds that are rare, and good."""
    image = Image.open(io.BytesIO(noise(3, (48, 64))))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    frames = [Image.open(io.BytesIO(noise(i, (48, 64)))) for i in (3, 4)]
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)
    return {
        "animated.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "cmyk.jpg": saved(image.convert("CMYK"), "JPEG"),
        "deep.png": saved(deep, "PNG"),
        "rgba.png": saved(image.convert("RGBA"), "PNG"),
        "turned.jpg": saved(image, "JPEG", exif=exif),
    }


def test_bad_pictures_are_rows_of_the_errors_and_stop_nothing(model, tmp_path):
    folder, odd = tmp_path / "in", odd_pictures()
    folder.mkdir()
    for name, content in [*odd.items(), *((name, data) for name, (data, _) in BAD.items())]:
        (folder / name).write_bytes(content)
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "self.png").symlink_to("self.png")
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        file.write(b"?")
    summary = embed(folder, model, tmp_path / "out", rows_per_part=4, **QUIET)
    found, bad = rows(tmp_path / "out"), errors(tmp_path / "out")
    assert found["key"] == sorted(odd)
    assert np.allclose(
        found["embedding"], expected(model, [odd[k] for k in found["key"]]), atol=2e-6
    )
    for name, (_, reason) in BAD.items():
        assert reason in bad.pop(name), name
    assert bad.pop("\\xff.png") == "is not an image in a format that Pillow knows"
    assert bad == {
        "gone.png": "No such file or directory",
        "self.png": "Too many levels of symbolic links",
    }
    assert (summary.rows, summary.errors) == (len(odd), len(BAD) + 3)

    embed(folder, model, tmp_path / "turned", exif_transpose=True, **QUIET)
    turned = rows(tmp_path / "turned")
    upright = Image.open(io.BytesIO(odd["turned.jpg"])).transpose(Image.Transpose.ROTATE_270)
    again = expected(model, [saved(upright, "PNG")])[0]
    at = turned["key"].index("turned.jpg")
    assert np.allclose(turned["embedding"][at], again, atol=2e-6)
    assert not np.allclose(turned["embedding"][at], found["embedding"][at], atol=1e-3)
    assert turned["embedding"][0] == found["embedding"][0]


def test_a_picture_that_can_not_be_read_is_an_error(model, tmp_path, monkeypatch):
    write_pictures(tmp_path / "in", 5)
    read = storage_module.Disk.read

    def refuse(self, path):
        if path.endswith("003.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return read(self, path)

    monkeypatch.setattr(storage_module.Disk, "read", refuse)
    embed(tmp_path / "in", model, tmp_path / "out", **QUIET)
    assert errors(tmp_path / "out") == {"003.png": "Permission denied"}


def test_a_shard_that_is_cut_off_is_embedded_up_to_there(model, tmp_path):
    images = [noise(i) for i in range(6)]
    write_tar(tmp_path / "a.tar", {f"{i}.png": image for i, image in enumerate(images)})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(tmp_path / "b.tar", {"x.png": images[0], "x.jpg": images[1]})
    embed(tmp_path / "*.tar", model, tmp_path / "out", **QUIET)
    found, bad = rows(tmp_path / "out"), errors(tmp_path / "out")
    assert found["key"][-1] == "x" and 1 < len(found["key"]) < 6
    assert np.allclose(found["embedding"][1], expected(model, images[1:2])[0], atol=2e-6)
    assert set(bad) == {"a.tar", "x.jpg"}
    assert "cut off" in bad["a.tar"]


def test_a_damaged_parquet_file_among_others_is_an_error(model, tmp_path):
    parquet(tmp_path / "a.parquet", {"image": [noise(1)]})
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    path = parquet(tmp_path / "c.parquet", {"image": [noise(i) for i in range(40)]})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    summary = embed(tmp_path / "*.parquet", model, tmp_path / "out", **QUIET)
    assert summary.rows + summary.errors == 42
    assert {"b.parquet"} < set(errors(tmp_path / "out"))


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_file_that_can_not_be_opened_is_an_error_until_it_is_tried_again(model, tmp_path, suffix):
    for name in "ab":
        images = [noise(ord(name) + i) for i in range(5)]
        if suffix == "tar":
            members = {f"{name}{i}.png": image for i, image in enumerate(images)}
            write_tar(tmp_path / f"{name}.tar", members)
        else:
            parquet(tmp_path / f"{name}.parquet", {"image": images})
    source, options = tmp_path / f"*.{suffix}", {"rows_per_part": 2, **QUIET}
    embed(source, model, tmp_path / "undisturbed", **options)
    first, out = tmp_path / f"a.{suffix}", tmp_path / "out"
    good = first.read_bytes()
    first.write_bytes(b"?" * len(good))  # of the same size, so of the same job
    summary = embed(source, model, out, **options)
    assert (summary.rows, summary.errors) == (5, 1)
    assert f"a.{suffix}" in errors(out) or "damaged" in str(errors(out))
    assert embed(source, model, out, **options).parts == 0
    first.write_bytes(good)
    assert embed(source, model, out, **options).parts == 0
    assert embed(source, model, out, retry_errors=True, **options).rows == 5
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def test_an_empty_input_is_refused_and_claims_nothing(model, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        embed(tmp_path / "in", model, tmp_path / "out", **QUIET)
    (tmp_path / "in.txt").touch()
    for dry_run in (True, False):
        with pytest.raises(ValueError, match="is empty: there is no row"):
            embed(tmp_path / "in.txt", model, tmp_path / "out", dry_run=dry_run, **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "sounds"}, "what must be one of None, 'images', 'texts', 'both'. Got 'sounds'"),
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'float16'. Got 'int8'"),
        ({"format": "csv"}, "format must be one of"),
        ({"preset": "fast"}, "is for models by name or path"),
        ({"rows_per_part": 0}, "rows_per_part must be at least 1. Got 0"),
        ({"max_errors": -1}, "max_errors must be at least 0. Got -1"),
        ({"shard": (2, 2)}, "must have 0 <= I < N. Got 2/2"),
        ({"what": "both"}, "has no texts"),
        ({"columns": Columns(others=("n",))}, "has no columns to take along"),
    ],
)
def test_options_out_of_range_are_refused(pictures, model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        embed(pictures, model, tmp_path / "out", **QUIET | options)
    assert not (tmp_path / "out").exists()
