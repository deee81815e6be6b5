"""Sources of pairs: what they read, and all that can be wrong with them at once."""

import io
import json
import os
import tarfile

import pytest
from PIL import Image

from clip_jax.sources import Columns, TablePairs, TarPairs, open_input, open_pairs, read_picture
from clip_jax.sources.patterns import expand


def picture(color=(200, 30, 40), size=(6, 5), kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue()


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_table(folder, kind: str, rows: list[dict]):
    path = folder / f"captions.{kind}"
    if kind == "csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables_give_pictures_and_captions(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    for name, color in (("a.png", (1, 2, 3)), ("sub/b.png", (4, 5, 6))):
        (tmp_path / name).write_bytes(picture(color))
    rows = [
        {"image": "a.png", "caption": 'a "dog", barking', "other": "x"},
        {"image": "sub/b.png", "caption": "Katze über\nzwei Zeilen", "other": "y"},
    ]
    table = write_table(tmp_path, kind, rows)
    for path in (table, tmp_path):
        pairs = open_pairs(path)
        assert len(pairs) == 2
        assert [pairs[i].key for i in range(2)] == ["a.png", "sub/b.png"]
        assert [pairs[i].captions for i in range(2)] == [(row["caption"],) for row in rows]
        assert pairs[1].image == picture((4, 5, 6))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_picture_may_have_a_key_and_several_captions(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(picture())
    rows = [
        {"key": "1f600", "image": "a.png", "captions": ["grin", "smile"]},
        {"key": "1f601", "image": "a.png", "captions": ["beam"]},
    ]
    pairs = TablePairs(write_table(tmp_path, kind, rows))
    assert [(pairs[i].key, pairs[i].captions) for i in range(2)] == [
        ("1f600", ("grin", "smile")),
        ("1f601", ("beam",)),
    ]


def test_all_that_is_wrong_with_a_table_is_said_at_once(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    rows = [
        {"image": "a.png", "caption": "fine"},
        {"image": "a.png", "caption": "twice"},
        {"image": "none.png", "caption": "lost"},
        {"image": "a.png", "key": "k", "caption": " "},
        {"image": "", "caption": "no path"},
        {"image": "a.png", "key": "l", "captions": []},
        {"image": "a.png", "key": "m"},
        {"image": "a.png", "key": "n", "caption": 3},
    ]
    path = write_table(tmp_path, "jsonl", rows)
    with pytest.raises(ValueError) as caught:
        TablePairs(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 7 problems:")
    for line in (
        "row 2: the key 'a.png' has been there before",
        "row 3: no such picture: none.png",
        "row 4: a blank caption",
        "row 5: no 'image'",
        "row 6: no caption",
        "row 7: there must be a column 'caption' or 'captions'",
        "row 8: no caption",
    ):
        assert line in message


def test_only_the_first_problems_are_shown(tmp_path):
    rows = [{"image": f"{i}.png", "caption": "x"} for i in range(25)]
    with pytest.raises(ValueError, match="25 problems(.|\n)*row 10(.|\n)*and 15 more$"):
        TablePairs(write_table(tmp_path, "csv", rows))


def test_a_comma_too_many_in_a_csv_is_a_problem(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "captions.csv").write_text("image,caption\na.png,a dog, barking\n")
    with pytest.raises(ValueError, match="row 1: more cells than columns"):
        open_pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions.csv", "image,caption\n", "the table has no rows"),
        ("captions.jsonl", '{"image": \n', "row 1: the line is no JSON"),
        ("captions.txt", "x", "ends in .csv, .jsonl, .parquet. Got '.txt'"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_pairs(tmp_path / name)


def test_a_folder_must_have_one_table(tmp_path):
    with pytest.raises(ValueError, match="no table of captions"):
        open_pairs(tmp_path)
    for kind in ("csv", "jsonl"):
        (tmp_path / f"captions.{kind}").write_text("")
    with pytest.raises(ValueError, match="more than one table"):
        open_pairs(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_pairs(tmp_path / "none")


def test_shards_give_pictures_and_captions(tmp_path):
    write_tar(
        tmp_path / "p-00.tar",
        {
            "a.png": picture((1, 1, 1)),
            "a.txt": b"eine Katze\n",
            "d/b.jpg": picture(kind="JPEG"),
            "d/b.json": b'{"captions": ["dog", "puppy"], "x": 1}',
            "d/b.cls": b"7",
        },
    )
    write_tar(tmp_path / "p-01.tar", {"c.PNG": picture((3, 3, 3)), "c.json": b'{"caption": "hen"}'})
    for pattern in ("p-{00..01}.tar", "p-*.tar", "{p-00,p-01}.tar"):
        pairs = open_pairs(tmp_path / pattern)
        found = {pairs[i].key: pairs[i].captions for i in range(len(pairs))}
        assert found == {"a": ("eine Katze",), "d/b": ("dog", "puppy"), "c": ("hen",)}
        images = {pairs[i].key: pairs[i].image for i in range(len(pairs))}
        assert images["c"] == picture((3, 3, 3))


def test_all_that_is_wrong_with_shards_is_said_at_once(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {"x.png": picture(), "x.txt": b"x", "y.png": picture(), "z.txt": b"z", "w.png": picture()}
        | {"w.json": b"{", "v.png": picture(), "v.txt": b" ", "u.png": picture(), "u.json": b"[]"},
    )
    write_tar(tmp_path / "b.tar", {"x.png": picture(), "x.txt": b"again"})
    (tmp_path / "c.tar").write_bytes(b"no tar at all, but long enough for one" * 40)
    with pytest.raises(ValueError) as caught:
        TarPairs(tmp_path / "*.tar")
    message = str(caught.value)
    for part in (
        "7 problems",
        "y: no caption",
        "z: no image",
        "w: ",
        "v: a blank caption",
        "u: the JSON document is no object",
        "the key 'x' has been there before",
        "c.tar: the tar file is damaged",
    ):
        assert part in message


def test_a_pattern_that_fits_nothing_is_refused(tmp_path):
    write_tar(tmp_path / "p-0.tar", {"a.png": picture(), "a.txt": b"x"})
    with pytest.raises(FileNotFoundError) as caught:
        TarPairs(tmp_path / "p-{0..1}.tar")
    assert str(caught.value.filename).endswith("p-1.tar")


def test_braces_count_as_the_shell_does(tmp_path):
    for name in ("s-008.tar", "s-009.tar", "s-010.tar", "t-1.tar"):
        (tmp_path / name).touch()
    names = [path.rpartition("/")[2] for path in expand(f"{tmp_path}/s-{{008..010}}.tar")]
    assert names == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert len(expand(f"{tmp_path}/{{s-0{{08,10}},t-1}}.tar")) == 3


def test_pictures_are_read_by_many_threads_at_a_time(tmp_path):
    import concurrent.futures

    members = {}
    for i in range(40):
        members |= {f"{i:02d}.png": picture((i, 0, 0), (i + 1, 3)), f"{i:02d}.txt": b"x"}
    pairs = TarPairs(write_tar(tmp_path / "a.tar", members))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda i: pairs[i].image, list(range(40)) * 20))
    assert images == [members[f"{i:02d}.png"] for i in range(40)] * 20


# --- rows to embed


def rows_of(source, columns: Columns | None = None) -> list:
    """All records of an input."""
    records = []
    for shard in open_input(source, columns).shards:
        rows = shard.open()
        records += rows.records(0, len(rows))
    return records


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path):
    for name in ("b.JPG", "a.png", "sub/deeper/c.webp", "notes.txt", "sub/.d.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    records = rows_of(tmp_path)
    names = ["a.png", "b.JPG", "sub/.d.gif", "sub/deeper/c.webp"]
    assert [record.key for record in records] == names
    assert [record.read().decode() for record in records] == names
    assert [read_picture(record.path).decode() for record in records] == names


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.png").write_bytes(b"a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"b")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "in" / "self.png").symlink_to(tmp_path / "in" / "self.png")
    records = {record.key: record for record in rows_of(tmp_path / "in")}
    assert set(records) == {"gone.png", "link/b.png", "self.png", "sub/a.png", "sub/up"}
    assert records["link/b.png"].read() == b"b"
    assert records["sub/up"].problem == "a link to a folder that it lies in"
    for name in ("gone.png", "self.png"):
        with pytest.raises(OSError):
            records[name].read()


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(b"x")
    (record,) = rows_of(tmp_path)
    assert record.key == "caf\\xe9.png"
    assert record.read() == b"x"
    record.path.encode()
    assert read_picture(record.path) == b"x"
    with pytest.raises(FileNotFoundError):
        read_picture(record.path.replace("caf", "tea"))


def test_a_folder_without_pictures_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="no pictures .*it is empty"):
        open_input(tmp_path)
    write_tar(tmp_path / "a.tar", {"a.png": picture()})
    with pytest.raises(ValueError, match=r"it holds .tar files: give them as a pattern"):
        open_input(tmp_path)
    with pytest.raises(ValueError, match="expected a folder of pictures, or files that end in"):
        open_input(tmp_path / "*.zip")
    with pytest.raises(FileNotFoundError):
        open_input(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        open_input(tmp_path / "none-*.tar")
    (tmp_path / "table.parquet").mkdir()
    parquet(tmp_path / "table.parquet" / "0.parquet", {"caption": ["x"]})
    with pytest.raises(ValueError, match=r"it holds .parquet files: give them as a pattern"):
        open_input(tmp_path / "table.parquet")


def test_shards_give_rows_with_and_without_captions(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "x.png": b"X",
            "x.json": b'{"caption": "an x", "license": "CC0", "n": [1]}',
            "d/y.jpg": b"Y",
            "z.txt": b"only a text",
            "w.png": b"W",
            "w.json": b"{",
        },
    )
    x, y, z, w = rows_of(tmp_path / "*.tar", Columns(others=("license", "n")))
    assert (x.key, x.caption, dict(x.columns)) == ("x", "an x", {"license": "CC0", "n": [1]})
    assert (y.key, y.caption, y.read()) == ("d/y", None, b"Y")
    assert (z.key, z.caption, z.read) == ("z", "only a text", None)
    assert (w.key, w.caption, w.problem) == ("w", None, None)  # the picture is fine
    assert read_picture(x.path) == b"X"
    with pytest.raises(FileNotFoundError):
        read_picture(x.path + "x")


def test_a_second_picture_of_a_name_is_a_problem_of_its_own(tmp_path):
    write_tar(tmp_path / "a.tar", {"x.png": b"first", "y.png": b"Y", "x.jpg": b"second"})
    x, y, second = rows_of(tmp_path / "a.tar")
    assert (x.key, x.read()) == ("x", b"first")
    assert second.key == "x.jpg" and "comes before it" in second.problem


def test_a_second_record_of_a_key_does_not_mix_with_the_first(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("x.png", b"first"),
            ("x.txt", b"one"),
            ("x.png", b"second"),
            ("x.txt", b"two"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    x, second = rows_of(tmp_path / "a.tar")
    assert (x.key, x.read(), x.caption) == ("x", b"first", "one")
    assert second.problem is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.tar is empty"),
        (b"\x1f\x8b" + bytes(600), "a.tar is compressed: unpack it"),
        (b"something else" * 80, "a.tar is no tar file, or a damaged one"),
    ],
)
def test_what_is_no_tar_file_is_refused_unless_it_is_one_among_others(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_input(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", {"x.png": b"X"})
    found = [record.problem is None for record in rows_of(tmp_path / "*.tar")]
    assert found == [False, True]


@pytest.mark.parametrize("cut", [512 + 100, 2 * 1024 + 200, 2 * 1024 + 512 + 100, 2 * 1024])
def test_what_precedes_a_cut_is_there_and_the_rest_is_one_row(tmp_path, cut):
    members = {f"{i}.png": bytes([65 + i]) * 300 for i in range(5)}
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    *before, rest = rows_of(tmp_path / "a.tar")
    assert len(before) == cut // 1024
    assert [record.read() for record in before] == list(members.values())[: len(before)]
    assert rest.key == "a.tar" and "damaged or cut off" in rest.problem


def parquet(path, table: dict, **options):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(table), path, **options)
    return path


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


def test_inputs_of_other_names_or_sizes_have_other_listings(tmp_path):
    seen = set()
    for names in (("a.png",), ("b.png",), ("a.png", "b.png")):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")
        seen.add(open_input(folder).fingerprint)
    for text in ("x\n", "xy\n", "yx\n"):
        (tmp_path / "t.txt").write_text(text)
        seen.add(open_input(tmp_path / "t.txt").fingerprint)
    assert len(seen) == 6


def test_a_folder_tells_pictures_from_others_of_their_names(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    before = open_input(tmp_path)
    (tmp_path / "b.png").write_bytes(b"y")
    after = open_input(tmp_path)
    assert before.fingerprint == after.fingerprint
    assert before.shards[0].stamp([0]) == after.shards[0].stamp([0])
    assert before.shards[0].stamp([1]) != after.shards[0].stamp([1])


def test_pictures_in_shards_may_be_links(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:

        def add(name, kind=tarfile.REGTYPE, target="", content=b""):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content)
            tar.addfile(info, io.BytesIO(content))

        add("sub/b.png", tarfile.SYMTYPE, "../a.png")  # before what it stands for
        add("a.png", content=picture())
        add("c.png", tarfile.LNKTYPE, "a.png")
        add("./f.png", tarfile.SYMTYPE, "./c.png")
        add("d.png", tarfile.SYMTYPE, "elsewhere.png")
        add("e.txt", tarfile.SYMTYPE, "a.png")
    rows = {record.key: record for record in rows_of(tmp_path / "x.tar")}
    assert list(rows) == ["a", "sub/b", "c", "./f", "d.png"]
    assert all(rows[key].read() == picture() for key in ("a", "sub/b", "c", "./f"))
    assert read_picture(rows["c"].path) == picture()
    assert rows["d.png"].problem == "a link to elsewhere.png, which is no picture of this file"


def test_no_picture_of_a_shard_is_left_out_in_silence(tmp_path):
    members = {"a.tif": picture(kind="TIFF"), "IMG.2020.png": picture(), "b.png": picture()}
    write_tar(tmp_path / "x.tar", members | {"b.mask.png": picture()})
    rows = {record.key: record for record in rows_of(tmp_path / "x.tar")}
    assert list(rows) == ["a", "b", "IMG.2020.png"]
    assert rows["a"].read() == members["a.tif"]
    assert "ends at its first dot, and '2020.png' is no picture" in rows["IMG.2020.png"].problem


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


def test_sources_are_read_from_object_stores():
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe_file("/in/pics/a.png", b"A")
    store.pipe_file("/in/pics/sub/b.jpg", b"B")
    store.pipe_file("/in/t-0.txt", b"one\n")
    store.pipe_file("/in/t-1.txt", b"two\n")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("x.png")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"X"))
    store.pipe_file("/in/x.tar", file.getvalue())
    records = rows_of("memory://in/pics")
    assert [(record.key, record.read()) for record in records] == [
        ("a.png", b"A"),
        ("sub/b.jpg", b"B"),
    ]
    assert read_picture(records[1].path) == b"B"
    for pattern in ("memory://in/t-*.txt", "memory://in/t-{0..1}.txt"):
        assert [record.caption for record in rows_of(pattern)] == ["one", "two"]
    (record,) = rows_of("memory://in/*.tar")
    assert record.read() == b"X"
    with pytest.raises(FileNotFoundError):
        open_input("memory://in/none.txt")
    with pytest.raises(ValueError, match="no addresses of nowhere://"):
        open_input("nowhere://in")


def test_braces_count_down_and_pad_as_the_shell_does(tmp_path):
    def fitting(pattern: str) -> list[str]:
        return [path.rpartition("/")[2] for path in expand(f"{tmp_path}/{pattern}")]

    for name in ("a1", "a2", "a3", "a08", "a09", "a10"):
        (tmp_path / name).touch()
    assert fitting("a{3..1}") == ["a1", "a2", "a3"]
    assert fitting("a{10..08}") == fitting("a{08..10}") == ["a08", "a09", "a10"]
    assert fitting("a{2..2}") == ["a2"]


@pytest.mark.parametrize("image", [b"\x89PNG", {"bytes": b"\x89PNG", "path": "a.png"}])
def test_pairs_with_pictures_inside_the_table_are_refused_in_one_line(tmp_path, image):
    path = write_table(tmp_path, "parquet", [{"image": image, "caption": "a dog"}])
    with pytest.raises(ValueError) as caught:
        TablePairs(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: the column 'image' must hold paths of files. Got ")
    assert ".tar shards" in line


@pytest.mark.parametrize("kind", ["large_string", "dictionary"])
def test_paths_of_pairs_may_be_of_any_type_of_text(tmp_path, kind):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    types = {"large_string": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.utf8())}
    (tmp_path / "a.png").write_bytes(picture())
    table = pa.table({"image": pa.array(["a.png"], types[kind]), "caption": ["a dog"]})
    parquet.write_table(table, tmp_path / "captions.parquet")
    assert TablePairs(tmp_path)[0].image == picture()
