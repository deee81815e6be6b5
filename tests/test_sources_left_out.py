"""One faulty sample, or several captions of a picture, don't stop those who use the others."""

import pytest

from clip_jax.sources import Columns, open_pairs
from tests.archives import write_table, write_tar
from tests.pictures import picture


def keys(pairs) -> list[str]:
    return [pairs.key(i) for i in range(len(pairs))]


def captions(pairs) -> list[tuple[str, ...]]:
    return [pairs.captions(i) for i in range(len(pairs))]


FAULTS = {
    "no caption": {"x.png": picture()},
    "a blank caption": {"x.png": picture(), "x.txt": b" \n"},
    "no image": {"x.txt": b"a dog"},
    "the JSON document is no object": {"x.png": picture(), "x.json": b"[]"},
    "the caption is not UTF-8": {"x.png": picture(), "x.txt": b"caf\xe9"},
    "packed or encrypted as .gz": {"x.png.gz": b"?", "x.txt": b"a dog"},
    "a name ends at its first dot": {"x.v2.png": picture()},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_sample_of_a_shard_is_left_out_and_named(tmp_path, fault):
    good = {"a.png": picture(), "a.txt": b"a", "b.png": picture(), "b.txt": b"b"}
    path = write_tar(tmp_path / "p.tar", good | FAULTS[fault])
    pairs = open_pairs(path, max_skipped=0.01)
    assert keys(pairs) == ["a", "b"]
    (problem,) = pairs.left_out.problems
    assert fault in problem and f"{path}: x" in problem
    assert "1 sample:" in str(pairs.left_out) and problem in str(pairs.left_out)
    with pytest.raises(ValueError, match="1 problem:"):
        open_pairs(path, max_skipped=0)


def test_a_shard_may_be_damaged_within_the_share_of_shards(tmp_path):
    for i in range(4):
        write_tar(tmp_path / f"{i}.tar", {f"{i}.png": picture(), f"{i}.txt": b"x"})
    (tmp_path / "3.tar").write_bytes((tmp_path / "3.tar").read_bytes()[:600])
    with pytest.raises(ValueError, match="1 of 4 files can't be used, more than the share of 0.2"):
        open_pairs(tmp_path / "*.tar", max_skipped=0.2)
    pairs = open_pairs(tmp_path / "*.tar", max_skipped=0.3)
    assert keys(pairs) == ["0", "1", "2"]
    assert "3.tar: the tar file is damaged or cut off" in str(pairs.left_out)


def test_more_faulty_samples_than_the_share_stop_the_job(tmp_path):
    def shard(good: int, bad: int):
        members = {f"{i}.txt": b"x" for i in range(good + bad)}
        return write_tar(tmp_path / "p.tar", members | {f"{i}.png": picture() for i in range(good)})

    assert len(open_pairs(shard(40, 4), max_skipped=0.1)) == 40
    assert len(open_pairs(shard(20, 10), max_skipped=0.1)) == 20  # few, whatever the share
    with pytest.raises(ValueError, match="11 of 31 samples can't be used, .* 0.1 that max_skipped"):
        open_pairs(shard(20, 11), max_skipped=0.1)
    with pytest.raises(ValueError, match="3 of 5 samples"):  # few, but most
        open_pairs(shard(2, 3), max_skipped=0.1)
    with pytest.raises(ValueError, match="2 problems"):  # nothing is left
        open_pairs(shard(0, 2), max_skipped=1.0)


def test_a_second_picture_of_one_name_is_told_of_and_is_no_reason_to_stop(tmp_path):
    members = {f"{i}.txt": b"x" for i in range(3)}
    members |= {f"{i}.{kind}": picture() for i in range(3) for kind in ("png", "webp")}
    pairs = open_pairs(write_tar(tmp_path / "p.tar", members), max_skipped=0.01)
    assert len(pairs) == 3 and len(pairs.left_out.notes) == 3
    assert "0.webp: another picture of this name" in str(pairs.left_out)


def test_keys_may_start_anew_in_each_shard(tmp_path):
    for i in range(3):
        members = {"000.png": picture((i, 0, 0)), "000.txt": str(i).encode()}
        write_tar(tmp_path / f"{i}.tar", members)
    pairs = open_pairs(tmp_path / "*.tar")
    assert keys(pairs) == ["000", "1.tar/000", "2.tar/000"]
    assert captions(pairs) == [("0",), ("1",), ("2",)]
    assert not pairs.left_out and str(pairs.left_out) == ""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_may_have_a_row_for_each_caption(tmp_path, kind):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    rows = [{"image": f"{name}.png", "caption": text} for name, text in ("a1", "b1", "a2", "b2")]
    pairs = open_pairs(write_table(tmp_path, kind, rows))
    assert keys(pairs) == ["a.png", "b.png"]
    assert captions(pairs) == [("1", "2"), ("1", "2")]


def test_rows_with_keys_of_their_own_stay_pairs_of_one_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    rows = [{"image": "a.png", "caption": text, "key": f"k{text}"} for text in "12"]
    pairs = open_pairs(write_table(tmp_path, "csv", rows))
    assert keys(pairs) == ["k1", "k2"] and captions(pairs) == [("1",), ("2",)]
    assert pairs.picture(0) == pairs.picture(1)


def test_one_key_of_two_pictures_is_told_apart(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    rows = [{"image": name, "caption": name, "key": "0"} for name in ("a.png", "b.png")]
    pairs = open_pairs(write_table(tmp_path, "csv", rows))
    assert keys(pairs) == ["0", "captions.csv:2/0"]


def test_a_blank_caption_among_others_is_dropped(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    path = write_table(tmp_path, "jsonl", [{"image": "a.png", "captions": ["", "a", None, "b"]}])
    assert captions(open_pairs(path)) == [("a", "b")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"image": "none.png", "caption": "x"}, "no such picture: none.png"),
        ({"image": "", "caption": "x"}, "no 'image'"),
        ({"image": "a.png", "caption": ""}, "a blank caption"),
        ({"image": "https://a.org/b.png", "caption": "x"}, "the picture is an address"),
    ],
)
def test_a_faulty_row_of_a_table_is_left_out_and_named(tmp_path, row, problem):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture())
    rows = [{"image": f"{i}.png", "caption": "fine"} for i in range(3)]
    pairs = open_pairs(write_table(tmp_path, "csv", [*rows, row]), max_skipped=0.01)
    assert len(pairs) == 3
    (found,) = pairs.left_out.problems
    assert found.startswith("row 4: ") and problem in found


def test_a_wrong_header_is_one_error_and_not_one_for_each_row(tmp_path):
    rows = [{"picture": f"{i}.png", "alt": "x"} for i in range(30)]
    path = write_table(tmp_path, "csv", rows)
    with pytest.raises(ValueError) as caught:
        open_pairs(path, max_skipped=0.01)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(
        f"{path}: no column 'image' and no column 'caption'; its columns are 'picture', 'alt'."
    )
    assert "image_column, caption_column" in line
    with pytest.raises(ValueError, match="no column 'caption'; its columns"):
        open_pairs(path, Columns(image="picture"), max_skipped=0.01)
