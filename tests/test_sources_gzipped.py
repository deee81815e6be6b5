"""Shards that are gzipped are read as plain ones are, and what is damaged of them is told."""

import gzip
import io
import json
import pickle
import tarfile

import pytest

from clip_jax.embed import embed
from clip_jax.errors import Exhausted
from clip_jax.sources import gzipped, members, open_input, open_pairs, read_picture
from tests.archives import rows_of, write_tar
from tests.embedding_jobs import QUIET, errors, lasting, rows
from tests.pictures import noise, picture

pytestmark = pytest.mark.usefixtures("compiled_once")


def shard(path, count: int = 9):
    members = {}
    for i in range(count):
        members[f"{i}.png"] = noise(i)
        members[f"{i}.json"] = json.dumps({"caption": f"picture {i}", "width": i}).encode()
    return write_tar(path, members)


@pytest.fixture
def both(tmp_path):
    """A shard, and the same one gzipped."""
    plain = shard(tmp_path / "plain.tar")
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return plain, packed


@pytest.mark.parametrize("name", ["packed.tar.gz", "packed.tgz", "PACKED.TGZ", "misnamed.tar"])
def test_a_gzipped_shard_has_the_rows_of_the_plain_one(both, name, tmp_path):
    plain, packed = both
    packed = packed.rename(tmp_path / name)
    there, here = rows_of(plain), rows_of(packed)
    assert [row.key for row in here] == [row.key for row in there] and len(here) == 9
    assert [row.read() for row in reversed(here)] == [row.read() for row in reversed(there)]
    assert [row.caption for row in here] == [row.caption for row in there]
    pairs, same = open_pairs(packed), open_pairs(plain)
    assert [pairs[i] for i in (7, 0, 3)] == [same[i] for i in (7, 0, 3)]


def test_a_row_of_a_gzipped_shard_is_found_by_its_path(both):
    (first, *_) = rows_of(both[1])
    assert first.path is not None and read_picture(first.path) == noise(0)


def test_a_row_that_another_process_has_indexed_is_unpacked_once_more(both, monkeypatch):
    found = rows_of(both[1])
    there = [row.read() for row in found]
    unpacked = []
    unpack = members.unpacked
    monkeypatch.setattr(members, "unpacked", lambda *a: unpacked.append(1) or unpack(*a))
    again = pickle.loads(pickle.dumps(found))
    assert [row.read() for row in again] == there
    assert [row.read() for row in pickle.loads(pickle.dumps(found))] == there
    assert len(unpacked) == 1
    both[1].write_bytes(gzip.compress(bytes(4096)))
    with pytest.raises(OSError, match="has changed since its headers were read"):
        members._unpacked_here.cache_clear()
        pickle.loads(pickle.dumps(found))[0].read()


def test_a_stopped_job_of_gzipped_shards_goes_on_to_the_same_bits(both, model, tmp_path):
    for out in ("whole", "cut"):
        embed(both[1], model, tmp_path / out, rows_per_part=2, **QUIET)
    there = lasting(tmp_path / "whole")
    for number in (0, 3):
        (tmp_path / "cut" / f"part-000000-{number:06d}.parquet").unlink()
    summary = embed(both[1], model, tmp_path / "cut", rows_per_part=2, **QUIET)
    assert (summary.parts, summary.rows_before) == (2, 5)
    assert lasting(tmp_path / "cut") == there
    embed(both[0], model, tmp_path / "plain", rows_per_part=2, **QUIET)
    plain, packed = rows(tmp_path / "plain"), rows(tmp_path / "whole")
    assert packed["embedding"] == plain["embedding"] and packed["key"] == plain["key"]


def test_what_a_cut_off_gzipped_shard_still_has_is_embedded(both, model, tmp_path):
    whole = both[1].read_bytes()
    both[1].write_bytes(whole[: len(whole) * 2 // 3])
    summary = embed(both[1], model, tmp_path / "out", **QUIET)
    assert 3 < summary.rows < 9 and summary.errors == 1
    (reason,) = errors(tmp_path / "out").values()
    assert "gzip data is damaged or cut off" in reason
    both[1].write_bytes(whole)  # another size: another input
    with pytest.raises(ValueError, match="packed.tar.gz has another size"):
        embed(both[1], model, tmp_path / "out", retry_errors=True, **QUIET)


def test_a_gzipped_shard_with_a_wrong_checksum_is_told_of(both):
    data = bytearray(both[1].read_bytes())
    data[-8] ^= 1
    both[1].write_bytes(data)
    *good, bad = rows_of(both[1])
    assert len(good) == 9 and "CRC check failed" in bad.problem


def test_a_gzipped_file_that_is_no_tar_is_refused_before_anything_is_embedded(tmp_path):
    for name, data in (("a.tgz", b"no tar" * 200), ("b.tar.gz", b"")):
        path = tmp_path / name
        path.write_bytes(gzip.compress(data))
        with pytest.raises(ValueError, match="no tar file"):
            open_input(path)
    path.write_bytes(gzip.compress(noise(1))[:12] + b"broken")
    with pytest.raises(ValueError, match="b.tar.gz: its gzip data is damaged|no tar file"):
        open_input(path)


def test_a_shard_of_another_compression_says_which_is_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:bz2") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
    with pytest.raises(ValueError, match="unpack it to a plain tar file first, or compress it wi"):
        open_input(tmp_path / "a.tar")


def test_a_small_file_does_not_fill_the_disk(both, monkeypatch):
    monkeypatch.setattr(gzipped, "MOST_BYTES", 1 << 16)
    big = io.BytesIO()
    with tarfile.open(fileobj=big, mode="w") as tar:
        for name in ("a.png", "b.png", "c.png"):
            info = tarfile.TarInfo(name)
            info.size = 1 << 23
            tar.addfile(info, io.BytesIO(bytes(1 << 23)))
    both[1].write_bytes(gzip.compress(big.getvalue()))
    (row,) = rows_of(both[1])
    assert "unpacks to more than" in row.problem and "100 times its size" in row.problem


def test_a_full_disk_stops_the_job_and_names_no_row(both, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    class Full(io.BytesIO):
        write = full

    monkeypatch.setattr(gzipped.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(Exhausted, match="TMPDIR"):
        rows_of(both[1])
