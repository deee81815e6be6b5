"""Rows of folders, shards and object stores: which there are, their order, their problems."""

import io
import os
import tarfile

import pytest

from clip_jax.sources import Columns, open_input, read_picture
from tests.archives import parquet, rows_of, write_tar
from tests.pictures import picture


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
    names = {"gone.png", "link/b.png", "pipe.png", "self.png", "sub/a.png", "sub/up"}
    assert set(records) == names
    assert records["link/b.png"].read() == b"b"
    assert records["sub/up"].problem == "a link to a folder that it lies in"
    for name in ("gone.png", "pipe.png", "self.png"):
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
    assert open_input(tmp_path / "table.parquet").has_captions
    (tmp_path / "table.parquet" / "0.tgz").touch()
    with pytest.raises(ValueError, match=r"it holds .tgz files: give them as a pattern"):
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
        (b"\xfd7zXZ" + bytes(600), "a.tar: it is compressed: unpack it"),
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
