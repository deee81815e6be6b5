"""Rows of tables: Parquet, CSV, JSON lines and text files."""

import subprocess
import sys

import pytest

from clip_jax.sources import Columns, open_input, read_picture
from tests.archives import parquet, rows_of, write_table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_parquet_gives_pictures_as_bytes_or_by_their_paths(tmp_path):
    (tmp_path / "p.png").write_bytes(b"beside")
    parquet(
        tmp_path / "a.parquet",
        {
            "image": [b"0", None, b"2"],
            "hf": [{"bytes": b"h0", "path": "x"}, {"bytes": None, "path": "p.png"}, None],
            "file": ["p.png", str(tmp_path / "p.png"), ""],
            "caption": ["zero", None, "two"],
            "url": ["u0", "u1", "u2"],
        },
        row_group_size=2,
    )
    path = tmp_path / "a.parquet"
    zero, one, two = rows_of(path, Columns(others=("url",)))
    assert (zero.key, zero.caption, zero.read()) == ("a.parquet:0", "zero", b"0")
    assert (one.read, one.caption, dict(one.columns)) == (None, None, {"url": "u1"})
    assert read_picture(two.path) == b"2"
    hf = rows_of(path, Columns(image="hf"))
    assert [record.read and record.read() for record in hf] == [b"h0", b"beside", None]
    files = rows_of(path, Columns(image="file", key="url"))
    assert [record.read and record.read() for record in files] == [b"beside", b"beside", None]
    assert [record.key for record in files] == ["u0", "u1", "u2"]


def test_times_in_nanoseconds_are_taken_along_as_they_are(tmp_path):
    pa = pytest.importorskip("pyarrow")
    times = pa.array([1, None, 3], pa.timestamp("ns"))
    path = parquet(tmp_path / "a.parquet", {"caption": ["x", "y", "z"], "time": times})
    rows = open_input(path, Columns(others=("time",))).shards[0].open()
    found = [record.columns["time"].value for record in rows.records(1, 3)]
    assert found == [None, 3]


def test_any_rows_of_a_parquet_file_can_be_had(tmp_path):
    path = parquet(
        tmp_path / "a.parquet", {"caption": [str(i) for i in range(100)]}, row_group_size=37
    )
    rows = open_input(path).shards[0].open()
    for begin, end in ((0, 100), (36, 38), (37, 74), (99, 100), (5, 5)):
        found = [record.caption for record in rows.records(begin, end)]
        assert found == [str(i) for i in range(begin, end)]


def test_a_table_without_the_columns_says_which_it_has(tmp_path):
    parquet(tmp_path / "a.parquet", {"picture": [b"x"], "TEXT": ["y"]})
    message = "no column 'image' and no column 'caption'; its columns are 'picture', 'TEXT'"
    with pytest.raises(ValueError, match=message):
        open_input(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'url'; its columns are 'picture', 'TEXT'"):
        open_input(tmp_path / "a.parquet", Columns(image="picture", others=("url",)))
    found = open_input(tmp_path / "a.parquet", Columns(caption="TEXT"))
    assert (found.has_images, found.has_captions) == (False, True)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ValueError, match="is no Parquet file, or a damaged one"):
        open_input(tmp_path / "a.parquet")


def test_text_files_give_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\nthr\xe9e\nfo\xc3\xbcr")
    records = rows_of(tmp_path / "a.txt")
    assert [record.key for record in records] == [f"a.txt:{i}" for i in (1, 2, 3, 4)]
    assert [record.caption for record in records] == ["one", None, None, "foür"]
    assert "blank" in records[1].problem and "not UTF-8" in records[2].problem
    (tmp_path / "b.csv").write_bytes(b'key,caption,n\nk,"a, b",3\nl,x,y,z\nm,\xe9,5\n')
    k, extra, broken = rows_of(tmp_path / "b.csv", Columns(others=("n",)))
    assert (k.key, k.caption, dict(k.columns)) == ("k", "a, b", {"n": "3"})
    assert "more cells" in extra.problem and "not UTF-8" in broken.problem
    (tmp_path / "c.jsonl").write_text('{"caption": ["x", "y"], "key": 7}\n\n{"caption"\n[]\n')
    seven, cut, other = rows_of(tmp_path / "c.jsonl")
    assert (seven.key, seven.caption) == ("7", "x")
    assert "no JSON" in cut.problem and "no JSON object" in other.problem


def test_a_row_that_trips_the_parsers_is_a_problem_of_its_own(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"caption\rold\rMac\r")
    assert [record.caption for record in rows_of(tmp_path / "b.csv")] == ["old", "Mac"]
    (tmp_path / "c.jsonl").write_text('{"caption": "fine"}\n{"caption": ' + "[" * 100_000 + "\n")
    fine, deep = rows_of(tmp_path / "c.jsonl")
    assert fine.caption == "fine" and "nested too deep" in deep.problem


def test_a_row_without_a_picture_says_so(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"image": [b"0", None]})
    zero, none = rows_of(path)
    assert zero.problem is None and none.problem == "no picture, and no caption"


def test_tables_of_pictures_can_be_embedded_too(tmp_path):
    (tmp_path / "a.png").write_bytes(b"A")
    write_table(tmp_path, "csv", [{"image": "a.png", "caption": "x"}])
    (record,) = rows_of(tmp_path / "captions.csv")
    assert (record.key, record.caption, record.read()) == ("a.png", "x", b"A")
    found = open_input(tmp_path / "captions.csv")
    assert found.has_images and found.has_captions


@pytest.mark.parametrize("first", ["{bad\n", "\n", '{"caption": "a"}\n', "3\n"])
def test_columns_are_not_told_by_the_first_row_alone(tmp_path, first):
    (tmp_path / "a.jsonl").write_text(first + '{"image": "a.png", "caption": "a"}\n')
    found = open_input(tmp_path / "a.jsonl")
    assert found.has_images and found.has_captions


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_empty_file_in_front_is_no_reason_to_do_nothing(tmp_path, kind):
    (tmp_path / f"0.{kind}").touch()
    write_table(tmp_path, kind, [{"caption": "x"}]).rename(tmp_path / f"1.{kind}")
    assert [record.caption for record in rows_of(tmp_path / f"*.{kind}")] == ["x"]
    with pytest.raises(ValueError, match=f"0.{kind}: there is no row"):
        open_input(tmp_path / f"0.{kind}")


def test_a_blank_line_in_front_is_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ncaption\nx\n")
    (record,) = rows_of(tmp_path / "a.csv")
    assert record.caption == "x"


def test_a_column_is_of_a_type_that_holds_all_files(tmp_path):
    pa = pytest.importorskip("pyarrow")
    for i, note in enumerate((pa.nulls(1), pa.array([1]), pa.array([1.5]))):
        parquet(tmp_path / f"{i}.parquet", {"caption": ["x"], "note": note})
    columns = Columns(others=("note",))
    assert open_input(tmp_path / "*.parquet", columns).types == {"note": pa.float64()}
    parquet(tmp_path / "3.parquet", {"caption": ["x"], "note": pa.array(["one"])})
    message = "'note' is double in 2.parquet and string in 3.parquet: write it as one type"
    with pytest.raises(ValueError, match=message):
        open_input(tmp_path / "*.parquet", columns)
    parquet(tmp_path / "4.parquet", {"caption": ["x"], "view": pa.array(["a"], pa.string_view())})
    with pytest.raises(ValueError, match="'view' is string_view, which can't be taken along"):
        open_input(tmp_path / "4.parquet", Columns(others=("view",)))


def test_columns_are_taken_along_once():
    with pytest.raises(ValueError, match="named twice: price"):
        Columns(others=("price", "label", "price"))


def test_damaged_statistics_of_parquet_do_not_end_the_process(tmp_path):
    # In a process of its own: Arrow's exception could not be caught.
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"caption": ["a", "b"]}), path)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    # Of the two histograms of levels the first is empty, and should be; it takes the other's place.
    damaged = footer.replace(b"\x19\x06\x19\x26", b"\x19\x26", 1)
    assert len(damaged) == len(footer) - 2
    path.write_bytes(body + damaged + len(damaged).to_bytes(4, "little") + b"PAR1")
    program = """
import sys
from clip_jax.sources import open_input
from clip_jax.sources.faults import all_records, opened
(shard,) = open_input(sys.argv[1]).shards
rows = opened(shard)
print([record.problem for record in all_records(rows, shard.name, 0, len(rows))])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("can't be read") + done.stdout.count("histogram") >= 1, done.stdout


def test_two_columns_of_one_name_are_refused_where_the_name_is_asked_for(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("key,caption,n,caption,n\nk,one,1,two,2\n")
    with pytest.raises(ValueError, match=r"a\.csv: 2 columns have the name 'caption'; rename"):
        open_input(path)
    path.write_text("key,caption,n,n\nk,one,1,2\n")
    (record,) = rows_of(path)  # nobody asks for n
    assert (record.key, record.caption) == ("k", "one")
    with pytest.raises(ValueError, match="2 columns have the name 'n'"):
        open_input(path, Columns(others=("n",)))
