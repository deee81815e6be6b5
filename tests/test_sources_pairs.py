"""Sources of pairs: what they read, and all that can be wrong with them at once."""

import pytest

from clip_jax.sources import TablePairs, TarPairs, open_pairs
from clip_jax.sources.patterns import expand
from tests.archives import write_table, write_tar
from tests.pictures import picture


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
        {"image": "a.png", "caption": "again, which is another caption of it"},
        {"image": "none.png", "caption": "lost"},
        {"image": "a.png", "key": "k", "caption": " "},
        {"image": "", "caption": "no path"},
        {"image": "a.png", "key": "l", "caption": []},
        {"image": "a.png", "key": "m"},
        {"image": "a.png", "key": "n", "caption": 3},
    ]
    path = write_table(tmp_path, "jsonl", rows)
    with pytest.raises(ValueError) as caught:
        TablePairs(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 6 problems:")
    for line in (
        "row 3: no such picture: none.png",
        "row 4: a blank caption",
        "row 5: no 'image'",
        "row 6: no caption",
        "row 7: no caption",
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
        ("captions.txt", "x", "ends in .csv, .tsv, .jsonl, .parquet. Got '.txt'"),
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
    (tmp_path / "c.tar").write_bytes(b"no tar at all, but long enough for one" * 40)
    with pytest.raises(ValueError) as caught:
        TarPairs(tmp_path / "*.tar")
    message = str(caught.value)
    for part in (
        "6 problems",
        "y: no caption",
        "z: no image",
        "w: ",
        "v: a blank caption",
        "u: the JSON document is no object",
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


def test_braces_count_down_and_pad_as_the_shell_does(tmp_path):
    def fitting(pattern: str) -> list[str]:
        return [path.rpartition("/")[2] for path in expand(f"{tmp_path}/{pattern}")]

    for name in ("a1", "a2", "a3", "a08", "a09", "a10"):
        (tmp_path / name).touch()
    assert fitting("a{3..1}") == ["a1", "a2", "a3"]
    assert fitting("a{10..08}") == fitting("a{08..10}") == ["a08", "a09", "a10"]
    assert fitting("a{2..2}") == ["a2"]


@pytest.mark.parametrize("kind", ["large_string", "dictionary"])
def test_paths_of_pairs_may_be_of_any_type_of_text(tmp_path, kind):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    types = {"large_string": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.utf8())}
    (tmp_path / "a.png").write_bytes(picture())
    table = pa.table({"image": pa.array(["a.png"], types[kind]), "caption": ["a dog"]})
    parquet.write_table(table, tmp_path / "captions.parquet")
    assert TablePairs(tmp_path)[0].image == picture()
