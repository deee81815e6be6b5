"""Embedding jobs: what they leave, whatever they are fed and however often they are killed."""

import errno
import functools
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import clip_jax
from clip_jax import attempts
from clip_jax import progress as progress_module
from clip_jax import storage as storage_module
from clip_jax.embed import Columns, Summary, embed, job, read_embeddings
from clip_jax.embed.chunks import Worker, divide
from clip_jax.loading import CpuGate, Loader, loading
from clip_jax.nn import normalize
from clip_jax.sources import Record
from tests import processes
from tests.models import SMALL_VIT, small
from tests.test_sources import parquet, picture, write_tar

pytest.importorskip("pyarrow")

pytestmark = pytest.mark.long
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

COUNT = 40
QUIET = {"progress": False, "batch_size": 8}


@pytest.fixture(scope="module")
def model():
    return small(SMALL_VIT)


@pytest.fixture(autouse=True, scope="module")
def compiled_once():
    """All jobs of small(SMALL_VIT) share their programs, which take longer than the jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_encoder", lambda model, size: _encoder(str(model.dtype), size))
        yield


_make_encoder = job._encoder


@functools.cache
def _encoder(dtype: str, batch_size: int | None) -> clip_jax.Encoder:
    return _make_encoder(small(SMALL_VIT, dtype=dtype), batch_size)


def noise(seed: int, size=(40, 36), kind="PNG", **options) -> bytes:
    """A picture that is like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_pictures(folder: Path, count: int = COUNT) -> Path:
    (folder / "sub").mkdir(parents=True)
    for i in range(count):
        (folder / ("sub" if i % 3 else "") / f"{i:03d}.png").write_bytes(noise(i))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("in") / "pictures")


@pytest.fixture(scope="module")
def undisturbed(compiled_once, pictures, model, tmp_path_factory) -> Path:
    """What an embedding job of `pictures` leaves."""
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    embed(pictures, model, out, rows_per_part=7, **QUIET)
    return out


def contents(out: Path) -> dict[str, bytes]:
    """The files of an output by their names; no others may be left."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def lasting(out: Path) -> dict[str, bytes]:
    """The files of an output without the times of the input's files."""
    return {k: v for k, v in contents(out).items() if not k.startswith("stamps/")}


def rows(out: Path) -> dict:
    """The parts as columns."""
    return read_embeddings(out).to_table().to_pydict()


def errors(out: Path) -> dict[str, str]:
    """Reasons by key."""
    files = sorted((out / "errors").glob("*.parquet")) if (out / "errors").exists() else []
    return {row["key"]: row["reason"] for file in files for row in pq.read_table(file).to_pylist()}


def expected(model, images: list[bytes]) -> np.ndarray:
    """The normalised embeddings of pictures, by the model itself."""
    preprocess = clip_jax.Preprocess(model.config.vision.image_size)
    pixels = [preprocess.pixels(Image.open(io.BytesIO(image))) for image in images]
    return np.asarray(normalize(model.encode_image(np.stack(pixels))))


# --- what is left


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


# --- what is bad


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


def bomb() -> bytes:
    """A PNG that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


BAD = {
    "bomb.png": (bomb(), "refused, because it is too large"),
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


# --- where it goes


def test_a_full_disk_leaves_no_half_of_a_part(pictures, undisturbed, model, tmp_path, monkeypatch):
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device.*part-"):
        embed(pictures, model, tmp_path / "out", rows_per_part=7, **QUIET)
    left = contents(tmp_path / "out")
    assert 1 < len(left) < len(contents(undisturbed))
    monkeypatch.undo()
    embed(pictures, model, tmp_path / "out", rows_per_part=7, **QUIET)
    assert contents(tmp_path / "out") == contents(undisturbed)


def test_an_output_that_can_not_be_written_is_refused(pictures, model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        embed(pictures, model, tmp_path / "file" / "out", **QUIET)
    with pytest.raises(OSError):  # where nobody may write, whoever it is
        embed(pictures, model, "/proc/clip-jax", **QUIET)


def test_parts_on_an_object_store_are_one_put_each(pictures, undisturbed, model, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    puts, pipe = [], memory.pipe_file

    def counted(path, value, **options):
        puts.append(path)
        return pipe(path, value, **options)

    monkeypatch.setattr(memory, "pipe_file", counted)
    out = "memory://bucket/out"
    embed(pictures, model, out, rows_per_part=7, **QUIET)
    assert len(puts) == len(set(puts)) == len(contents(undisturbed))
    for name, content in contents(undisturbed).items():
        assert memory.cat_file(f"/bucket/out/{name}") == content
    assert read_embeddings(out).count_rows() == COUNT
    assert embed(pictures, model, out, rows_per_part=7, **QUIET).parts == 0
    memory.rm_file("/bucket/out/part-000000-000002.parquet")
    assert embed(pictures, model, out, rows_per_part=7, **QUIET).parts == 1


def test_an_address_on_this_machine_is_its_path(pictures, undisturbed, model, tmp_path):
    out = tmp_path / "new" / "out"
    embed(f"file://{pictures}", model, f"file://{out}/", rows_per_part=7, **QUIET)
    assert contents(out) == contents(undisturbed)
    assert read_embeddings(f"file://{out}").count_rows() == COUNT


def test_a_store_with_real_folders_makes_them(tmp_path):
    path = f"file://{tmp_path}/new/folder/a.txt"
    storage_module.storage(path).write(path, b"x")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == b"x"


def test_a_store_that_can_not_be_reached_stops_the_job(pictures, model, tmp_path, monkeypatch):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name in ("a.png", "b.png"):
        memory.pipe_file(f"/far/{name}", noise(1))

    def unreachable(*args, **options):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(memory, "cat_file", unreachable)
    with pytest.raises(OSError, match="can't be reached: RuntimeError: no route to host. Check"):
        embed("memory://far", model, tmp_path / "out", **QUIET)
    monkeypatch.setattr(memory, "find", unreachable)
    with pytest.raises(OSError, match="memory://far can't be reached"):
        embed("memory://far", model, tmp_path / "out", **QUIET)
    with pytest.raises(OSError, match="memory://.*can't be reached"):
        embed(pictures, model, "memory://far/out", **QUIET)


@pytest.mark.parametrize(
    ("module", "out", "extra"), [("pyarrow", "out", "embed"), ("fsspec", "memory://x", "remote")]
)
def test_a_missing_extra_is_named(pictures, model, tmp_path, monkeypatch, module, out, extra):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"clip-jax-flax\[{extra}\]"):
        embed(pictures, model, out if "://" in out else tmp_path / out, **QUIET)


# --- going on


def test_the_same_command_again_has_nothing_to_do(pictures, undisturbed, model):
    before = contents(undisturbed)
    summary = embed(pictures, model, undisturbed, rows_per_part=7, **QUIET)
    assert (summary.rows, summary.parts, summary.rows_before) == (0, 0, COUNT)
    assert contents(undisturbed) == before


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    match how:
        case "cut":
            data = data[: len(data) // 2]
        case "flipped":
            data[len(data) // 8] ^= 1  # well before the footer
        case "empty":
            data = b""
        case "other":
            data = b"something else"
    path.write_bytes(data)


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def left_by_a_kill(path: Path) -> None:
    """Writes what a process leaves that dies while it writes a file."""
    program = (
        "import sys; from clip_jax.unfinished import aside; open(aside(sys.argv[1]), 'w').close()"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "other"])
def test_a_part_that_is_damaged_is_done_again(pictures, undisturbed, model, copy, how):
    damage(copy / "part-000000-000003.parquet", how)
    for name in ("part-000000-000004.parquet", "job.json"):
        left_by_a_kill(copy / name)
    (copy / "part-000000-000005.parquet").unlink()
    (copy / "errors").mkdir()
    (copy / "errors" / "part-000000-000001.parquet").write_bytes(b"left by a kill, too")
    summary = embed(pictures, model, copy, rows_per_part=7, **QUIET)
    assert (summary.parts, summary.rows, summary.rows_before) == (2, 12, 28)
    assert contents(copy) == contents(undisturbed)


def test_a_part_of_another_job_does_not_count(pictures, undisturbed, model, copy, tmp_path):
    embed(pictures, model, tmp_path / "other", rows_per_part=7, exif_transpose=True, **QUIET)
    name = "part-000000-000001.parquet"
    (copy / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert embed(pictures, model, copy, rows_per_part=7, **QUIET).parts == 1
    assert contents(copy) == contents(undisturbed)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dtype": "float16"}, "dtype: there 'float32', here 'float16'"),
        ({"exif_transpose": True}, "exif_transpose: there False, here True"),
        ({"rows_per_part": 8}, "rows_per_part: there 7, here 8"),
        ({"format": "npy"}, "format: there 'parquet', here 'npy'"),
    ],
)
def test_another_job_in_the_folder_is_refused(pictures, undisturbed, model, options, line):
    there = json.loads((undisturbed / "job.json").read_text())["fingerprint"]
    with pytest.raises(ValueError, match="another job") as caught:
        embed(pictures, model, undisturbed, **{"rows_per_part": 7, **QUIET, **options})
    message = str(caught.value)
    assert line in message and there in message
    assert re.search(f"{there}; this one is (?!{there})[0-9a-f]{{16}}", message)


def test_another_model_or_input_is_refused(pictures, undisturbed, model, tmp_path):
    other = small(SMALL_VIT)
    other.visual.proj[...] = other.visual.proj[...] + 1e-6
    with pytest.raises(ValueError, match="model: there '"):
        embed(pictures, other, undisturbed, rows_per_part=7, **QUIET)
    with pytest.raises(ValueError, match="input: there '"):
        embed(pictures / "sub", model, undisturbed, rows_per_part=7, **QUIET)


def test_other_pictures_of_the_same_names_are_refused(model, tmp_path):
    folder, out = write_pictures(tmp_path / "in", 6), tmp_path / "out"
    (folder / "000.png").write_bytes(b"")
    options = {"rows_per_part": 2, **QUIET}
    embed(folder, model, out, **options)
    (folder / "000.png").write_bytes(noise(0))  # it has no embedding that could be another's
    assert embed(folder, model, out, **options).parts == 0
    (folder / "sub" / "005.png").write_bytes(noise(5, (30, 30)))
    next(out.glob("part-000000-000000.*")).unlink()
    before = contents(out)
    with pytest.raises(ValueError, match="of other pictures: rows 4 to 5 of the input"):
        embed(folder, model, out, **options)
    assert contents(out) == before
    next(out.glob("part-000000-000002.*")).unlink()
    assert embed(folder, model, out, **options).parts == 2
    assert len(rows(out)["key"]) == 6


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(pictures, undisturbed, model, copy):
    for name in ("000001", "000002"):
        (copy / f"part-000000-{name}.parquet").unlink()
    before = contents(copy)
    summary = embed(pictures, model, copy, rows_per_part=7, dry_run=True, **QUIET)
    assert (summary.rows_to_do, summary.parts_to_do, summary.rows_before) == (14, 2, 26)
    assert contents(copy) == before
    assert str(summary) == "to do: 14 rows in 2 parts; done before: 26 rows, 0 errors"
    new = copy.parent / "new"
    assert embed(pictures, model, new, rows_per_part=7, dry_run=True, **QUIET).parts_to_do == 6
    assert not new.exists()


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_errors_are_retried_only_if_it_is_said_and_then_are_as_if_they_had_never_been(
    model, tmp_path, format
):
    folder = write_pictures(tmp_path / "in", 20)
    failing = [folder / "000.png", folder / "sub" / "010.png", folder / "sub" / "019.png"]
    good = {path: path.read_bytes() for path in failing}
    options = {"rows_per_part": 6, "format": format, **QUIET}
    embed(folder, model, tmp_path / "undisturbed", **options)
    for path in failing:
        path.write_bytes(b"broken")
    out = tmp_path / "out"
    assert embed(folder, model, out, **options).errors == 3
    with_errors = contents(out)
    assert embed(folder, model, out, retry_errors=True, **options).errors == 3
    assert contents(out) == with_errors
    for path in failing[:2]:
        path.write_bytes(good[path])
    assert embed(folder, model, out, **options).parts == 0
    summary = embed(folder, model, out, retry_errors=True, **options)
    assert (summary.rows, summary.errors, summary.rows_before) == (2, 1, 17)
    failing[2].write_bytes(good[failing[2]])
    embed(folder, model, out, retry_errors=True, **options)
    assert lasting(out) == lasting(tmp_path / "undisturbed")


def test_a_job_stops_at_too_many_errors_and_keeps_what_is_finished(model, tmp_path):
    folder = write_pictures(tmp_path / "in", 20)
    for i in (7, 10, 11):
        (folder / "sub" / f"{i:03d}.png").write_bytes(b"")
    options = {"rows_per_part": 5, **QUIET}
    with pytest.raises(ValueError, match="3 rows could not be embedded, more than max_errors=2"):
        embed(folder, model, tmp_path / "out", max_errors=2, **options)
    assert len(list((tmp_path / "out").glob("part-*"))) >= 1
    assert embed(folder, model, tmp_path / "out", max_errors=3, **options).errors == 3
    with pytest.raises(ValueError, match="more than max_errors=0"):
        (folder / "sub" / "019.png").write_bytes(b"")
        (tmp_path / "out" / "part-000000-000003.parquet").unlink()
        embed(folder, model, tmp_path / "out", max_errors=0, **options)


# --- shares


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_every_row_is_in_one_unit_of_one_share(shards, rows_per_part, count):
    units = [unit for i, rows in enumerate(shards) for unit in divide(i, rows, rows_per_part)]
    assert all(0 < len(unit) <= rows_per_part for unit in units)
    covered = [(unit.shard, row) for unit in units for row in range(unit.begin, unit.end)]
    assert covered == [(i, row) for i, rows in enumerate(shards) for row in range(rows)]
    assert len({unit.name for unit in units}) == len(units)
    assert units == sorted(units) and sorted(u.name for u in units) == [u.name for u in units]
    shares = [
        [
            unit
            for unit in units
            if unit.shard in share.shards(len(shards)) and share.takes(unit, len(shards))
        ]
        for share in (Worker(i, count) for i in range(count))
    ]
    assert sorted(unit for share in shares for unit in share) == units


def test_shares_together_are_the_whole_job_to_the_bit(pictures, undisturbed, model, tmp_path):
    for i in (2, 0, 1):
        summary = embed(pictures, model, tmp_path, rows_per_part=7, shard=(i, 3), **QUIET)
        assert summary.parts == 2
    assert contents(tmp_path) == contents(undisturbed)


def test_a_process_with_files_enough_opens_no_other(model, tmp_path, monkeypatch):
    for i in range(9):
        write_tar(tmp_path / f"{i}.tar", {f"{j}.png": noise(10 * i + j) for j in range(3)})
    from clip_jax.sources.tar import TarShard

    opened, open_ = [], TarShard.open
    monkeypatch.setattr(TarShard, "open", lambda self: opened.append(self.name) or open_(self))
    embed(tmp_path / "*.tar", model, tmp_path / "out", shard=(1, 2), **QUIET)
    assert opened == ["1.tar", "3.tar", "5.tar", "7.tar"]
    assert len(list((tmp_path / "out").glob("part-*"))) == 4
    # What is finished need not be opened to know that it is.
    opened.clear()
    embed(tmp_path / "*.tar", model, tmp_path / "out", shard=(1, 2), **QUIET)
    assert opened == []


# --- loading


def test_what_is_read_ahead_is_bounded_in_bytes():
    lock, alive, most = threading.Lock(), 0, 0

    class Counting(Loader):
        def __call__(self, task, row, record):
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return super().__call__(task, row, record)

    image = picture(size=(40, 40))
    loader = Counting(
        preprocess=clip_jax.Preprocess(32),
        context_length=None,
        exif_transpose=False,
    )
    records = [(None, i, Record(str(i), lambda: image)) for i in range(60)]
    limit = 5 * loader.size(records[0][2])
    with loading(iter(records), loader, num_threads=4, read_ahead=limit) as ready:
        keys = []
        for loaded in ready:
            time.sleep(0.002)
            with lock:
                alive -= 1
            keys.append(loaded.record.key)
    assert keys == [str(i) for i in range(60)]
    assert most <= 6
    # One that is larger than the limit comes all the same.
    with loading(iter(records), loader, num_threads=4, read_ahead=1) as ready:
        assert len(list(ready)) == 60


@pytest.mark.parametrize("is_shared", [True, False])
def test_nothing_is_decoded_while_a_cpu_computes(is_shared):
    image, gate = picture(size=(40, 40)), CpuGate(is_shared=is_shared)
    loader = Loader(
        preprocess=clip_jax.Preprocess(32),
        context_length=None,
        exif_transpose=False,
        gate=gate,
    )
    records = [(None, i, Record(str(i), lambda: image)) for i in range(40)]
    with loading(iter(records), loader, num_threads=4, read_ahead=1 << 20) as ready:
        with gate.computing():
            running = [
                threading.Thread(target=loader, args=(None, i, Record(str(i), lambda: image)))
                for i in range(2)
            ]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join(0.5)
            assert [thread.is_alive() for thread in running] == [is_shared] * 2
        for thread in running:
            thread.join(10)
        assert not any(thread.is_alive() for thread in running)
        assert [loaded.row for loaded in ready] == list(range(40))
    # An error in the encoder, too, ends the turn.
    with pytest.raises(ValueError, match="damaged"), gate.computing():
        raise ValueError("damaged")
    assert loader(None, 0, records[0][2]).problem is None


def test_lines_of_json_tell_how_it_goes_where_there_is_no_terminal(
    pictures, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(progress_module, "EVERY", 0.0)
    monkeypatch.setattr(progress_module, "REFRESH", 0.0)
    embed(pictures, model, tmp_path, rows_per_part=7, batch_size=8)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[-1]["rows"] == lines[-1]["total"] == COUNT
    for name in ("rows_per_second", "remaining_seconds", "errors", "waiting"):
        assert name in lines[-1]


def test_a_bar_tells_how_it_goes_on_a_terminal(pictures, model, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress_module, "REFRESH", 0.0)
    embed(pictures, model, tmp_path, rows_per_part=7, batch_size=8)
    last = sys.stderr.getvalue().rpartition("\r")[2]
    assert re.search(rf"100%.* {COUNT}/{COUNT} .*row/s, 0 errors, \d+% waiting\]\n$", last)


@pytest.mark.parametrize(
    ("seconds", "bottleneck"),
    [
        ({"waited": 6.0, "reading": 9.0, "decoding": 2.0, "device": 3.0}, "reading"),
        ({"waited": 6.0, "reading": 1.0, "decoding": 9.0, "device": 3.0}, "decoding"),
        ({"waited": 1.0, "decoding": 9.0, "device": 8.0, "writing": 2.0}, "device"),
        ({"waited": 1.0, "decoding": 9.0, "device": 3.0, "writing": 8.0}, "writing"),
    ],
)
def test_the_summary_names_the_bottleneck_with_figures(seconds, bottleneck):
    summary = Summary(rows=100, parts=1, seconds=10.0, **seconds)
    assert summary.bottleneck == bottleneck
    assert f"bottleneck: {bottleneck} (waited for data {seconds['waited']} s" in str(summary)
    assert "10.0 s, 10.0 rows/s" in str(summary)


# --- kills


def start(model: Path, pictures: Path, out: Path, log) -> subprocess.Popen:
    """The command as a user starts it, on two devices."""
    command = [sys.executable, "-m", "clip_jax", "embed", str(pictures), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--model", str(model), "--rows-per-part", "2", "--batch-size", "2"],
        stdout=log,
        stderr=log,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
        cwd=Path(__file__).parents[1],
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Path, Path, dict[str, bytes]]:
    """A model, pictures, and what an undisturbed command leaves of them."""
    folder = tmp_path_factory.mktemp("kills")
    clip_jax.save(small(SMALL_VIT), folder / "model")
    write_pictures(folder / "pictures", 240)
    (folder / "pictures" / "bad.png").write_bytes(b"")
    with (folder / "log").open("w") as log:
        process = start(folder / "model", folder / "pictures", folder / "out", log)
        assert process.wait(timeout=120) == 0, (folder / "log").read_text()
    return folder / "model", folder / "pictures", contents(folder / "out")


def wait_for_parts(out: Path, count: int, running: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 100
    while len(list(out.glob("part-*"))) < count:
        assert time.monotonic() < deadline
        if all(process.poll() is not None for process in running):
            return
        time.sleep(0.002)


@pytest.mark.long
def test_a_killed_job_goes_on_without_a_row_lost_or_doubled(many, tmp_path):
    model, pictures, undisturbed = many
    rng, out, kills = random.Random(0), tmp_path / "out", 0
    with (tmp_path / "log").open("w") as log:
        for parts in (1, 40, 80):
            process = start(model, pictures, out, log)
            wait_for_parts(out, parts, [process])
            time.sleep(rng.uniform(0, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.wait()
        assert start(model, pictures, out, log).wait(timeout=120) == 0
    assert kills >= 2
    assert contents(out) == undisturbed
    keys = rows(out)["key"]
    assert len(keys) == len(set(keys)) == 240


@pytest.mark.long
def test_two_processes_of_which_one_is_killed_and_both_are_started_again(many, tmp_path):
    model, pictures, undisturbed = many
    for name, target in (("model", model), ("pictures", pictures)):
        (tmp_path / name).symlink_to(target)
    with processes.started(tmp_path, "embed") as running:
        wait_for_parts(tmp_path / "out", 30, running)
        running[1].kill()
    results = processes.run_two(tmp_path, "embed")
    before, now = (sum(int(r[name]) for r in results) for name in ("rows_before", "rows"))
    assert before >= 50 and before + now == 240
    assert all(int(result["rows"]) + int(result["rows_before"]) > 100 for result in results)
    assert contents(tmp_path / "out") == undisturbed
