"""What img2dataset leaves, in each of its formats; and tables of addresses that it is for.

The folders here are laid out as its version 1.47.0 does.
"""

import json
import shutil

import pytest

from clip_jax.embed import embed
from clip_jax.sources import Columns, open_input, open_pairs
from tests.archives import rows_of, write_table, write_tar
from tests.embedding_jobs import QUIET, rows
from tests.pictures import noise

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("compiled_once")

COUNT, SHARD = 12, 5
FAILED = (3, 7, 11)


def note(i: int) -> dict:
    """What it notes of an address, as it does for one that it could not get, too."""
    is_there = i not in FAILED
    return {
        "lang": "en" if i % 2 else "de",
        "caption": f"picture {i}",
        "url": f"http://example.org/{i}.png",
        "key": f"{i:09d}",
        "status": "success" if is_there else "failed_to_download",
        "error_message": None if is_there else "HTTP Error 404: File not found",
        "width": 32 + i if is_there else None,
        "sha256": "00" if is_there else None,
    }


def write(folder, kind: str, done: int = 3):
    """Its output in that format, of which `done` of three shards are finished."""
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    for number in range(3):
        name = f"{number:05d}"
        mine = range(number * SHARD, min((number + 1) * SHARD, COUNT))
        good = [i for i in mine if i not in FAILED]
        notes = [note(i) for i in mine]
        members = {}
        for i in good:
            members[f"{i:09d}.jpg"] = noise(i)
            members[f"{i:09d}.txt"] = f"picture {i}".encode()
            members[f"{i:09d}.json"] = json.dumps(note(i), indent=4).encode()
        if kind == "webdataset":
            write_tar(folder / f"{name}.tar", members)
        elif kind == "files":
            (folder / name).mkdir(exist_ok=True)
            for member, data in members.items():
                (folder / name / member).write_bytes(data)
        else:
            notes = [
                row | {"jpg": noise(i) if i in good else None}
                for i, row in enumerate(notes, mine[0])
            ]
        if number >= done:
            (folder / f"{name}.parquet").write_bytes(b"PAR1")  # it writes this as it goes
            continue
        pq.write_table(pa.Table.from_pylist(notes), folder / f"{name}.parquet")
        statistics = {"count": len(mine), "successes": len(good), "failed_to_download": 1}
        (folder / f"{name}_stats.json").write_text(json.dumps(statistics, indent=4))
    return folder


GOOD = [i for i in range(COUNT) if i not in FAILED]


@pytest.mark.parametrize("kind", ["webdataset", "files", "parquet"])
def test_its_folder_is_embedded_and_what_it_could_not_get_is_counted(kind, model, tmp_path):
    folder, out = write(tmp_path / kind, kind), tmp_path / "out"
    columns = Columns(others=() if kind == "files" else ("url", "lang", "status"))
    summary = embed(folder, model, out, what="both", columns=columns, rows_per_part=2, **QUIET)
    assert (summary.rows, summary.errors) == (len(GOOD), 0)
    assert f"3 pictures of {COUNT} that img2dataset could not download" in summary.remarks[0]
    found = rows(out)
    assert found["caption"] == [f"picture {i}" for i in GOOD]
    keys = [f"{i:09d}" for i in GOOD]
    assert found["key"] == (
        [f"{int(k) // SHARD:05d}/{k}.jpg" for k in keys] if kind == "files" else keys
    )
    if kind != "files":
        assert found["url"] == [f"http://example.org/{i}.png" for i in GOOD]
        assert set(found["status"]) == {"success"}
        assert embed(folder, model, tmp_path / "en", where="lang=en", **QUIET).rows == 3
    pairs = open_pairs(folder, max_skipped=0)
    assert [pairs[i].captions for i in range(len(pairs))] == [(f"picture {i}",) for i in GOOD]
    assert [pairs[i].image for i in range(len(pairs))] == [noise(i) for i in GOOD]


def test_a_shard_that_it_is_still_writing_waits(model, tmp_path):
    folder, out = write(tmp_path / "in", "webdataset", done=2), tmp_path / "out"
    with (folder / "00002.tar").open("r+b") as file:
        file.truncate(700)
    summary = embed(folder, model, out, rows_per_part=2, **QUIET)
    assert (summary.rows, summary.errors) == (8, 0)
    assert "as img2dataset has not finished it: 00002.tar" in summary.remarks[0]
    shutil.rmtree(folder)
    write(folder, "webdataset")
    assert embed(folder, model, out, rows_per_part=2, extend=True, **QUIET).rows == 1
    assert rows(out)["key"] == [f"{i:09d}" for i in GOOD]


def test_its_folder_of_another_format_says_which_is_read(tmp_path):
    folder = write(tmp_path / "in", "webdataset")
    for path in folder.glob("*.tar"):
        path.rename(path.with_suffix(".tfrecord"))
    with pytest.raises(ValueError, match="TFRecord.*--output_format webdataset"):
        open_input(folder)
    for path in folder.glob("*.tfrecord"):
        path.unlink()
    with pytest.raises(ValueError, match="img2dataset notes beside the pictures"):
        embed(folder, "emoji", tmp_path / "out", **QUIET)


TABLES = {
    "csv": [{"url": "http://example.org/a.png", "text": "a dog"}],
    "jsonl": [{"URL": "http://example.org/a.png", "TEXT": "a dog"}],
    "parquet": [{"image_url": "http://example.org/a.png", "caption": "a dog"}],
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_addresses_is_told_how_to_get_the_pictures(kind, model, tmp_path):
    source = write_table(tmp_path, kind, TABLES[kind])
    url, *_ = TABLES[kind][0]
    message = (
        f"has web addresses in '{url}', and no pictures: have img2dataset download them .*"
        f"--input_format {kind} --url_col {url} .*give the folder"
    )
    for what in (None, "images"):
        with pytest.raises(ValueError, match=f"{message}.*image_column='{url}'"):
            embed(source, model, tmp_path / "out", what=what, **QUIET)
    with pytest.raises(ValueError, match=f"{message} that it writes$"):  # and no option of embed's
        open_pairs(source)
    assert not (tmp_path / "out").exists()


def test_the_captions_of_a_table_of_addresses_are_embedded_where_that_is_said(model, tmp_path):
    source = write_table(tmp_path, "parquet", TABLES["parquet"])
    with pytest.raises(ValueError, match="its captions alone by what='texts'"):
        embed(source, model, tmp_path / "out", **QUIET)
    assert embed(source, model, tmp_path / "out", what="texts", **QUIET).rows == 1


def test_lists_of_addresses_and_tables_without_a_header_are_known(model, tmp_path):
    (tmp_path / "a.txt").write_text("https://example.org/a.png\nhttps://example.org/b.png\n")
    with pytest.raises(ValueError, match="a list of web addresses.*--input_format txt"):
        embed(tmp_path / "a.txt", model, tmp_path / "out", **QUIET)
    (tmp_path / "a.tsv").write_text("https://example.org/a.png\ta dog\n")
    with pytest.raises(ValueError, match="without a header.*write the names of its columns"):
        embed(tmp_path / "a.tsv", model, tmp_path / "out", **QUIET)
    (tmp_path / "b.txt").write_text("a dog\nhttps://example.org/b.png\n")
    assert len(rows_of(tmp_path / "b.txt")) == 2


def test_a_table_of_addresses_without_captions_is_told_the_way_out(tmp_path):
    (tmp_path / "t.csv").write_text("url,label\nhttps://a.b/c.jpg,cat\n")
    with pytest.raises(ValueError, match="--url_col url --output_format webdataset"):
        open_input(str(tmp_path / "t.csv"))
