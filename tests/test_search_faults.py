"""Search over outputs that lack parts or hold damaged ones, and with little to search with."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax import thumbnails
from clip_jax.cli import main
from clip_jax.embed import Columns, Incomplete, embed, read_embeddings
from clip_jax.search import contact_sheet, search
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, contents
from tests.limits import few_descriptors
from tests.models import SMALL_VIT
from tests.pictures import noise

pa = pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


COUNT, DIM = 30, SMALL_VIT.embed_dim


PART = "part-000000-000002.parquet"


OPTIONS = {"rows_per_part": 6, **QUIET}


@pytest.fixture(scope="module")
def root(compiled_once, model, tmp_path_factory) -> Path:
    """A model, captions with other columns, and their embeddings in both formats."""
    root = tmp_path_factory.mktemp("search")
    clip_jax.save(model, root / "model")
    columns = {
        "caption": [f"number {i}" for i in range(COUNT)],
        "key": [f"{i:02d}" for i in range(COUNT)],
        "time": pa.array([1_700_000_000_123_456_789] * COUNT, pa.timestamp("ns")),
        "date": pa.array([2**31 - 1] * COUNT, pa.date32()),
    }
    parquet(root / "in.parquet", columns)
    for format in ("parquet", "npy"):
        again(root, root / format)
    return root


def again(root: Path, out: Path):
    """The same command, whenever it is started."""
    columns = Columns(others=("time", "date"))
    return embed(
        root / "in.parquet", root / "model", out, format=out.name, columns=columns, **OPTIONS
    )


@pytest.fixture(params=["parquet", "npy"])
def copy(root, tmp_path, request) -> Path:
    return Path(shutil.copytree(root / request.param, tmp_path / request.param))


def embeddings_of(out: Path) -> tuple[Path, int]:
    """The file with the embeddings of the third part, and where in it they begin."""
    if out.name == "npy":
        return out / "text_emb" / "text_emb_000000-000002.npy", 128
    matrix = np.load(out.parent / "matrix.npy")
    return out / PART, (out / PART).read_bytes().index(matrix.tobytes())


def hurt(out: Path, how: str) -> None:
    """Damages the third of five parts."""
    rows = read_embeddings(out).to_table()["embedding"] if out.name == "parquet" else None
    if rows is not None:
        flat = rows.combine_chunks().flatten().to_numpy().reshape(COUNT, DIM)
        np.save(out.parent / "matrix.npy", flat[12:18])
    path, begin = embeddings_of(out)
    data = bytearray(path.read_bytes())
    match how:
        case "missing":
            path.unlink()
            return
        case "empty":
            data = bytearray()
        case "cut":
            data = data[: begin + 5 * 4 * DIM]
        case "not a number" | "infinite" | "huge":
            value = {"not a number": np.nan, "infinite": -np.inf, "huge": 1e38}[how]
            place = begin + 4 * (3 * DIM + 5)  # in the fourth row
            data[place : place + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "not a number", "infinite", "huge"])
def test_a_damaged_part_is_left_out_and_counted_until_it_is_embedded_again(root, model, copy, how):
    whole = search(root / copy.name, model, "x", k=COUNT)
    hurt(copy, how)
    with pytest.warns(
        Incomplete, match=r"is not finished: 6 rows are left out, .*000000-000002"
    ) as told:
        found = search(copy, model, "x", k=COUNT)
    assert [warning.message.rows for warning in told] == [6]
    lost = {f"{i:02d}" for i in range(12, 18)}
    assert found == [hit for hit in whole if hit["key"] not in lost]
    assert again(root, copy).parts == 1  # as the message says
    assert search(copy, model, "x", k=COUNT) == whole


def test_a_hit_that_can_not_be_shown_leaves_its_part_out(root, model, tmp_path):
    out = Path(shutil.copytree(root / "parquet", tmp_path / "parquet"))
    data = (out / PART).read_bytes()
    begin = data.index(b"\x28\xb5\x2f\xfd")  # of what is compressed, which are the keys
    (out / PART).write_bytes(data[:begin] + bytes(20) + data[begin + 20 :])
    with pytest.warns(Incomplete, match="6 rows are left out"):
        assert len(search(out, model, "x", k=COUNT)) == COUNT - 6


def test_a_file_without_any_part_may_be_empty(model, tmp_path):
    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", {"x.png": noise(i)} if i != 3 else {})
    embed(tmp_path / "*.tar", model, tmp_path / "out", **OPTIONS)
    with pytest.warns(Incomplete, match=r"no part of some files .*000003-\*.*: unless") as told:
        assert len(search(tmp_path / "out", model, "x")) == 4
    assert [warning.message.rows for warning in told] == [0]


def test_the_command_prints_what_there_is_and_fails(root, copy, capsys):
    hurt(copy, "not a number")
    assert main(["search", str(copy), "x", "-k", "40", "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == COUNT - 6
    assert err.count("\n") == 1 and "6 rows are left out" in err
    again(root, copy)
    assert main(["search", str(copy), "x", "--json"]) == 0


def test_many_parts_need_few_descriptors(root, model, tmp_path):
    captions = [f"number {i}" for i in range(150)]
    parquet(tmp_path / "in.parquet", {"caption": captions})
    for format in ("parquet", "npy"):
        embed(
            tmp_path / "in.parquet",
            model,
            tmp_path / format,
            format=format,
            **(OPTIONS | {"rows_per_part": 1}),
        )
    with few_descriptors(40):
        for format in ("parquet", "npy"):
            assert len(search(tmp_path / format, model, "x", k=1000)) == 150


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
def test_a_machine_that_can_not_read_is_no_damage(copy, monkeypatch, capsys, code):
    from clip_jax.storage import Disk

    def read_into(self, path, begin, target):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(Disk, "read_into", read_into)
    assert main(["search", str(copy), "x"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f": {os.strerror(code)}\n") and err.count("\n") == 1


# --- the page


def hits(*paths: str) -> list[dict]:
    return [{"key": str(i), "score": 0.5, "path": path} for i, path in enumerate(paths)]


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The paths of pictures that are read."""
    found: list[str] = []

    def read(path, image_column):
        found.append(path)
        return noise(1)

    monkeypatch.setattr(thumbnails, "read_picture", read)
    return found


def test_a_page_fetches_no_address_that_a_table_names_unless_asked(fetched):
    address = "https://example.org/<1>.png"
    shown = contact_sheet(hits(address, "/local.png"), "q", source="/in.csv")
    assert (
        fetched == ["/local.png"] and "not fetched: <bdi>https://example.org/&lt;1&gt;.png" in shown
    )
    shown = contact_sheet(hits(address), "q", source="/in.csv", fetch=True)
    assert fetched[1:] == [address] and "not fetched" not in shown


@pytest.mark.parametrize(
    ("source", "path", "is_within"),
    [
        ("s3://b/in", "s3://b/in/a.png", True),
        ("s3://b/in/", "s3://b/in/a.png", True),
        ("s3://b/in", "s3://b/into/a.png", False),
        ("s3://b/a.tar", "s3://b/a.tar/x.png", True),
        ("s3://b/{0..9}.tar", "s3://b/3.tar/x.png", True),
        ("s3://b/*.parquet", "s3://b/a.parquet/17", True),
        ("s3://b/*.parquet", "s3://b/secret.png", False),
        ("s3://b/in.csv", "s3://b/secret.png", False),
        ("s3://b/in", "https://example.org/a.png", False),
        (None, "s3://b/in/a.png", False),
    ],
)
def test_a_page_fetches_what_is_in_the_input(fetched, source, path, is_within):
    contact_sheet(hits(path), "q", source=source)
    assert fetched == [path] * is_within


def test_the_command_fetches_if_it_is_asked(model, tmp_path, capsys):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe_file("/elsewhere/0.png", noise(0))
    (tmp_path / "in.csv").write_text("image,caption\nmemory://elsewhere/0.png,x\n")
    clip_jax.save(model, tmp_path / "model")
    embed(tmp_path / "in.csv", tmp_path / "model", tmp_path / "out", **QUIET)
    command = ["search", str(tmp_path / "out"), "x", "--html", str(tmp_path / "page.html")]
    for options, count in ((), 0), (("--fetch",), 1):
        assert main([*command, *options]) == 0
        assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == count


# --- folders that are none, and embeddings that are none


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "expected the name of a folder. Got '': is a variable not set?"),
        ("  ", "is a variable not set?"),
        ("/", "expected a folder of its own. Got '/'"),
        ("//", "expected a folder of its own"),
        ("file:///", "expected a folder of its own"),
        ("s3://", "expected a folder of its own"),
    ],
)
def test_no_folder_is_not_the_root_folder(root, model, out, message, monkeypatch):
    monkeypatch.chdir(root)
    before = sorted(os.listdir("/")), contents(root)
    for use in (
        lambda: embed("in.parquet", model, out, **QUIET),
        lambda: search(out, model, "x"),
        lambda: read_embeddings(out),
    ):
        with pytest.raises(ValueError) as caught:
            use()
        assert message in str(caught.value)
    assert (sorted(os.listdir("/")), contents(root)) == before


def test_a_job_of_which_every_row_fails_fails(root, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(2):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"bad")
    command = ["embed", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    command += ["--model", str(root / "model"), "--batch-size", "8"]
    for _ in range(2):  # there are no more the second time
        assert main(command) == 1
        out, err = capsys.readouterr()
        assert "0 rows" in out
        assert f"no row could be embedded; errors/ in {tmp_path / 'out'} says why" in err
    (tmp_path / "in" / "0.png").write_bytes(noise(0))
    assert main([*command, "--retry-errors"]) == 0  # as the message says
    assert main(command) == 0


@pytest.mark.parametrize("name", ["key", "caption", "path"])
def test_a_column_of_a_name_that_the_output_has_is_refused_before_the_model_is_loaded(
    tmp_path, name
):
    (tmp_path / "in.csv").write_text("image,caption,key,path\na.png,x,1,2\n")
    with pytest.raises(ValueError, match=f"in the output already: {name}"):
        embed(
            tmp_path / "in.csv",
            tmp_path / "none",
            tmp_path / "out",
            columns=Columns(others=(name,)),
        )
    assert not (tmp_path / "out").exists()
