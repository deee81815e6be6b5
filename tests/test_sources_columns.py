"""Tables as people have them: tabs, other programs' columns, pictures inside, captions beside."""

import pytest

from clip_jax.sources import Columns, open_input, open_pairs
from tests.archives import parquet, rows_of, write_table
from tests.pictures import picture


@pytest.fixture
def folder(tmp_path):
    """A folder with two pictures."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture((len(name), 0, ord(name[0]))))
    return tmp_path


def write(path, rows, delimiter) -> str:
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "delimiter"), [("t.csv", "\t"), ("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", ",")]
)
@pytest.mark.parametrize(
    "names", [("filepath", "title"), ("file_name", "text"), ("image", "caption")]
)
def test_tabs_semicolons_and_other_programs_columns_are_read(folder, name, delimiter, names):
    rows = [names, ("a.png", "a dog"), ("b.png", "a cat")]
    path = write(folder / name, rows, delimiter)
    pairs = open_pairs(path)
    assert [pairs.captions(i) for i in range(2)] == [("a dog",), ("a cat",)]
    assert pairs[1].image == (folder / "b.png").read_bytes()
    found = rows_of(path)
    assert [(row.key, row.caption) for row in found] == [("a.png", "a dog"), ("b.png", "a cat")]
    assert found[0].read() == (folder / "a.png").read_bytes()


def test_a_comma_in_a_cell_is_no_delimiter_where_tabs_are(folder):
    path = write(folder / "t.csv", [("filepath", "title"), ("a.png", "a dog, barking")], "\t")
    assert open_pairs(path).captions(0) == ("a dog, barking",)


def test_columns_of_our_names_are_not_overruled(folder):
    # A job that embedded such a table before has no captions in its parts.
    path = write_table(folder, "csv", [{"image": "a.png", "title": "x", "filepath": "b.png"}])
    found = open_input(path)
    assert found.columns == Columns() and not found.has_captions
    # Training needs captions, and refused such a table before.
    pairs = open_pairs(path)
    assert (pairs.key(0), pairs.captions(0)) == ("a.png", ("x",))


def test_two_columns_that_may_be_meant_are_named_and_not_guessed(folder):
    rows = [{"filepath": "a.png", "file_name": "b.png", "title": "x"}]
    path = write_table(folder, "csv", rows)
    for read in (open_pairs, open_input):
        with pytest.raises(ValueError, match="either of 'filepath' and 'file_name' may be meant"):
            read(path)
        assert len(rows_of(path, Columns(image="file_name", caption="title"))) == 1


def test_lines_of_json_may_have_one_caption_or_several_each(folder):
    one, several = {"image": "a.png", "caption": "x"}, {"image": "b.png", "captions": ["y", "z"]}
    pairs = open_pairs(write_table(folder, "jsonl", [one, several]))
    assert [pairs.captions(i) for i in range(2)] == [("x",), ("y", "z")]
    both = {**several, "caption": "x"}
    with pytest.raises(ValueError, match="row 2: there must be a column 'caption' or 'captions'"):
        open_pairs(write_table(folder, "jsonl", [one, both]))
    with pytest.raises(ValueError, match="there must be a column 'caption' or 'captions'"):
        open_pairs(parquet(folder / "t.parquet", {name: [value] for name, value in both.items()}))


def test_column_names_can_be_given(folder):
    path = write_table(folder, "jsonl", [{"where": "a.png", "alt": "x", "id": 7}])
    pairs = open_pairs(path, Columns("where", "alt", "id"))
    assert (pairs.key(0), pairs.captions(0)) == ("7", ("x",))


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_pairs_may_have_their_pictures_inside_a_parquet_file(tmp_path, form):
    data = [picture((i, 0, 0)) for i in range(3)]
    image = data if form == "bytes" else [{"bytes": one, "path": None} for one in data]
    path = parquet(
        tmp_path / "t.parquet", {"image": image, "caption": ["a", "b", "c"]}, row_group_size=2
    )
    pairs = open_pairs(path)
    assert [pairs[i].image for i in (2, 0, 1)] == [data[2], data[0], data[1]]
    assert [pairs.size(i) for i in range(3)] == [len(one) for one in data]
    assert pairs.key(1) == "t.parquet:2" and pairs.captions(1) == ("b",)


def test_one_picture_inside_several_rows_is_kept_once(tmp_path):
    table = {"image": [picture()] * 3, "caption": ["a", "b", "c"], "key": ["k", "k", "l"]}
    pairs = open_pairs(parquet(tmp_path / "t.parquet", table))
    assert [pairs.captions(i) for i in range(2)] == [("a", "b"), ("c",)]
    assert pairs.picture(0) == pairs.picture(1)


def test_several_tables_are_given_as_a_pattern(tmp_path):
    for i in range(2):
        parquet(tmp_path / f"{i}.parquet", {"image": [picture((i, 0, 0))], "caption": [str(i)]})
    pairs = open_pairs(tmp_path / "*.parquet")
    assert [pairs.captions(i) for i in range(2)] == [("0",), ("1",)]
    assert [pairs.key(i) for i in range(2)] == ["0.parquet:1", "1.parquet:1"]


def test_a_data_set_of_hugging_face_in_a_folder_is_read(folder):
    write(folder / "metadata.csv", [("file_name", "text"), ("a.png", "a dog")], ",")
    assert open_pairs(folder).captions(0) == ("a dog",)
    write_table(folder, "csv", [{"image": "b.png", "caption": "a cat"}])  # captions.csv
    assert open_pairs(folder).captions(0) == ("a cat",)


def test_captions_may_lie_beside_their_pictures(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "c.v2.JPG").write_bytes(picture(kind="JPEG"))
    (folder / "sub" / "c.v2.json").write_text('{"captions": ["c", "d"]}')
    (folder / "a.txt").write_text("a dog\n")
    (folder / "a.json").write_text('{"caption": "not this one"}')
    (folder / "README.txt").write_text("about")
    (folder / "._a.png").write_bytes(b"macOS")
    pairs = open_pairs(folder, max_skipped=0.01)
    found = {pairs.key(i): pairs.captions(i) for i in range(len(pairs))}
    assert found == {"a.png": ("a dog",), "sub/c.v2.JPG": ("c", "d")}
    assert pairs[0].image == (folder / "a.png").read_bytes()
    assert pairs.left_out.problems == [
        "b.png: no caption beside it",
        "README.txt: no picture of this name beside it",
    ]


def test_a_folder_without_any_caption_says_what_was_expected(folder):
    with pytest.raises(ValueError, match="no table of captions; expected captions.csv.* a.txt"):
        open_pairs(folder)


def test_captions_beside_pictures_can_be_embedded(folder):
    (folder / "a.txt").write_text("a dog\n")
    found = open_input(folder, captions=True)
    assert found.has_captions and not open_input(folder).has_captions
    (shard,) = found.shards
    a, b = shard.open().records(0, 2)
    assert (a.key, a.caption, a.problem) == ("a.png", "a dog", None)
    assert (b.key, b.caption, b.problem) == ("b.png", None, None)
    (before,) = open_input(folder).shards
    stamps = [shard.stamp([row]) for row in range(2)]
    assert stamps[1] == before.stamp([1]) and stamps[0] != before.stamp([0])
    (folder / "a.txt").write_text("another")
    (changed,) = open_input(folder, captions=True).shards
    assert changed.stamp([0]) != stamps[0] and before.stamp([0]) == open_input(folder).shards[
        0
    ].stamp([0])
    (folder / "a.txt").write_bytes(b" ")
    (record,) = changed.open().records(0, 1)
    assert record.problem == "a.txt: a blank caption"
