"""Checkpoints as archives: what lies about itself, or is compressed, is refused."""

import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.convert.reader import read_checkpoint
from tests.checkpoint_files import EDITS, SMALL, STORAGES, edited, fast, refusal, survives
from tests.pickles import FIVE, Raw, W, encode, entries_of, program, write, zipped

# ---- containers ---------------------------------------------------------------------------------


def test_zip_bomb_is_refused_before_anything_is_inflated(path, monkeypatch):
    def inflated(*_, **__):
        raise AssertionError("inflated")

    path.write_bytes(zipped([("x/data.pkl", bytes(1 << 28))], zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", inflated)
    monkeypatch.setattr(zipfile.ZipFile, "read", inflated)
    assert "compressed" in refusal(path)


def test_huge_pickle_is_refused_unread(path):
    assert "16,777,216" in refusal(write(path, bytes((16 << 20) + 1)))


def test_compressed_storage_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program({"w": W}))
        archive.writestr("x/data/0", FIVE["0"], zipfile.ZIP_DEFLATED)
    assert "x/data/0 is compressed" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused(path):
    entries = entries_of(program({"w": W}), FIVE)
    path.write_bytes(zipped([*entries, entries[-1]]))
    assert "duplicate entries (x/data/0)" in refusal(path)


def test_duplicate_names_in_the_pickle_are_refused(path):
    twice = Raw(b"}(" + (encode("w") + W) * 2 + b"u")
    assert "duplicate entries for w" in refusal(write(path, twice, FIVE))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["data.pkl"], "one folder"),
        (["x/data.pkl", "y/data/0"], "2 top-level entries"),
        (["x/data.pkl", "stray"], "one folder"),
        (["x/other"], "without x/data.pkl"),
        (["x/y/data.pkl"], "without x/data.pkl"),
        ([], "0 top-level|begins with"),
    ],
)
def test_layout_must_be_one_folder(path, names, said):
    path.write_bytes(zipped([(name, b"N.") for name in names]))
    assert any(s in refusal(path) for s in said.split("|"))


def test_big_endian_is_refused(path):
    path.write_bytes(zipped([*entries_of(program({"w": W}), FIVE), ("x/byteorder", b"big")]))
    assert "big" in refusal(path)
    path.write_bytes(zipped([*entries_of(program({"w": W}), FIVE), ("x/byteorder", b"little")]))
    assert list(read_checkpoint(path)) == ["w"]


def patched(whole: bytes, name: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with one field of the central directory's entry for `name` changed."""
    at = whole.rindex(name) - 46 + offset
    size = struct.calcsize(form)
    return whole[:at] + struct.pack(form, value) + whole[at + size :]


@pytest.mark.parametrize(
    ("offset", "form", "value", "said"),
    [
        (8, "<H", 1, "encrypted"),
        (10, "<H", 12, "compressed"),
        (20, "<I", 1 << 20, "stores 1,048,576"),
        (24, "<I", 1 << 20, "claims 1,048,576"),
        (42, "<I", 0, "is not where"),
        (42, "<I", 1 << 30, "is not where"),
        (42, "<I", 5, "is not where"),
    ],
)
def test_lying_table_of_contents_is_refused(path, offset, form, value, said):
    whole = zipped(entries_of(program({"w": W}), FIVE))
    path.write_bytes(patched(whole, b"x/data/0", offset, form, value))
    assert said in refusal(path)


def test_entry_past_the_end_of_the_file_is_refused(path):
    whole = zipped(entries_of(program({"w": W}), FIVE))
    for offset in (20, 24):
        whole = patched(whole, b"x/data/0", offset, "<I", 1 << 20)
    path.write_bytes(whole)
    assert "is not where" in refusal(path)


def test_overlapping_entries_are_refused(path):
    whole = zipped(entries_of(program({"w": W}), FIVE | {"1": bytes(8)}))
    for offset in (20, 24):  # now reaches over the next entry's header and bytes
        whole = patched(whole, b"x/data/0", offset, "<I", 80)
    path.write_bytes(whole)
    assert "overlap" in refusal(path)


def test_damaged_pickle_fails_its_checksum(path):
    whole = zipped(entries_of(program({"weight": W}), FIVE))
    path.write_bytes(whole.replace(b"weight", b"height"))
    assert "checksum" in refusal(path)


# ---- fuzzing ------------------------------------------------------------------------------------


@settings(fast, max_examples=300)
@given(edits=EDITS, cut=st.integers(0, 3))
def test_damaged_archives_never_crash(path, edits, cut):
    whole = edited(zipped(entries_of(program(SMALL), STORAGES)), edits)
    path.write_bytes(whole[: len(whole) - cut])
    survives(path)
