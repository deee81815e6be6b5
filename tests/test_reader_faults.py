"""One bad thing is one row or one file; what is the machine's or the network's is no row's."""

import contextlib
import errno
import io
import itertools
import json
import os
import resource
import tarfile
import threading
from pathlib import Path

import pytest

from clip_jax import attempts
from clip_jax.errors import Exhausted, Refused, Unreachable
from clip_jax.loading import Loader, loading
from clip_jax.preprocess import Preprocess
from clip_jax.sources import (
    Columns,
    Record,
    TablePairs,
    TarPairs,
    addresses,
    lines,
    members,
    open_input,
    open_pairs,
    read_picture,
)
from clip_jax.sources.addresses import read_address
from clip_jax.sources.faults import all_records, opened
from clip_jax.sources.records import as_key, as_name
from clip_jax.storage import storage
from tests import fuzz_inputs, fuzz_readers
from tests.archives import parquet, write_tar
from tests.limits import limited
from tests.pictures import picture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def rows_of(source, **columns) -> list:
    """Records as the job has them, whatever is wrong with the files."""
    found = []
    for shard in open_input(source, Columns(**columns)).shards:
        rows = opened(shard)
        found += all_records(rows, shard.name, 0, len(rows))
    return found


def problems(source, **columns) -> dict[str, str | None]:
    return {record.key: record.problem for record in rows_of(source, **columns)}


@pytest.mark.parametrize("kind", sorted(fuzz_readers.KINDS))
def test_mutated_files_cost_no_neighbour_no_traceback_and_no_time(kind):
    found = fuzz_readers.fuzz(kind, seconds=100, seed=0, count=15)
    assert (found["inputs"], found["faults"]) == (15, {})


# --- tar


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    return fuzz_inputs._header(name, size, kind)


OCTAL = b"%011o\0" % 5
DEEP = (header(b"././@LongLink", OCTAL, b"L") + b"abcd".ljust(512, b"\0")) * 3000


@pytest.mark.parametrize(
    "data",
    [
        DEEP + bytes(1024),
        header(b"x", b"\x80\x7f" + b"\xff" * 10, b"x") + bytes(1024),
        header(b"a.png", b"\xff" * 8 + b"\xff\xff\xf8\x00") + bytes(1024),  # back to itself
        header(b"x", b"%011o\0" % (1 << 32), b"x") + bytes(1024),
        header(b"a.png", b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7) + bytes(1024),
    ],
    ids=["recursion", "overflow", "negative", "memory", "far"],
)
def test_a_shard_that_trips_tarfile_is_one_row(tmp_path, data):
    for name in ("0.tar", "2.tar"):
        write_tar(tmp_path / name, {f"{name[0]}.png": picture()})
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        info = tarfile.TarInfo("before.png")
        info.size = len(picture())
        tar.addfile(info, io.BytesIO(picture()))
        end = tar.offset
    (tmp_path / "1.tar").write_bytes(good.getvalue()[:end] + data)
    found = problems(tmp_path / "*.tar")
    assert [found[key] for key in ("0", "before", "2")] == [None] * 3
    assert len(found) == 4 and "damaged or cut off" in found["1.tar"]


def sparse(kind: str) -> bytes:
    """A member of 1,024 bytes of which the first 512 are a hole."""
    data = b"B" * 512
    if kind == "gnu":
        block = bytearray(header(b"x.png", b"%011o\0" % 512, b"S"))
        block[386:410] = b"%011o\0%011o\0" % (512, 512)
        block[483:495] = b"%011o\0" % 1024
        return fuzz_inputs._summed(block) + data
    records = {"GNU.sparse.name": "x.png", "GNU.sparse.realsize": "1024"}
    if kind == "pax 1.0":
        records |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        data = b"1\n512\n512\n".ljust(512, b"\0") + data
    else:
        records |= {"GNU.sparse.map": "512,512", "GNU.sparse.size": "1024"}
    text = b"".join(_record(name, value) for name, value in records.items())
    extended = header(b"pax", b"%011o\0" % len(text), b"x") + text.ljust(512, b"\0")
    return extended + header(b"GNUSparseFile.0/x.png", b"%011o\0" % len(data)) + data


def _record(name: str, value: str) -> bytes:
    body = f" {name}={value}\n".encode()
    return next(str(n).encode() + body for n in itertools.count() if len(str(n)) + len(body) == n)


@pytest.mark.parametrize("kind", ["gnu", "pax 0.1", "pax 1.0"])
def test_a_sparse_member_is_refused_by_name(tmp_path, kind):
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        info = tarfile.TarInfo("y.png")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"fine"))
    (tmp_path / "a.tar").write_bytes(sparse(kind) + good.getvalue())
    found = problems(tmp_path / "a.tar")
    assert found == {"y": None, "x.png": "a sparse member: pack the shard without tar's --sparse"}


def test_members_that_are_packed_encrypted_or_no_files_are_refused_by_name(tmp_path):
    members = {"a.png.gz": b"x", "b.jpg.gpg": b"x", "c.png": b"x", "c.txt.zst": b"x"}
    write_tar(tmp_path / "a.tar", members)
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo("d.png")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    found = {record.key: record for record in rows_of(tmp_path / "a.tar")}
    assert sorted(found) == ["a.png.gz", "b.jpg.gpg", "c", "d.png"]
    assert "packed or encrypted as .gz" in found["a.png.gz"].problem
    assert "packed or encrypted as .gpg" in found["b.jpg.gpg"].problem
    assert "no file, but a member of type '6'" in found["d.png"].problem
    assert (found["c"].problem, found["c"].caption) == (None, None)
    with pytest.raises(ValueError, match="c.txt.zst: packed or encrypted as .zst"):
        TarPairs(tmp_path / "a.tar")


def test_pairs_in_a_sparse_member_are_refused_by_name(tmp_path):
    end = write_tar(tmp_path / "b.tar", {"x.txt": b"hello"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(sparse("gnu") + end)
    with pytest.raises(ValueError, match="a.tar: x: a sparse member"):
        TarPairs(tmp_path / "a.tar")


def test_a_shard_that_changes_is_not_read_at_the_old_places(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": b"A" * 600, "b.png": b"B" * 600})
    first, second = rows_of(path)
    assert first.read() == b"A" * 600
    write_tar(path, {"c.png": b"C" * 2000, "d.png": b"D" * 600})
    with pytest.raises(OSError, match="a.tar has changed since its headers were read"):
        second.read()


# --- the machine


def test_few_shards_are_open_however_many_there_are(tmp_path):
    for i in range(300):
        write_tar(tmp_path / f"{i:03d}.tar", {f"{i}.png": picture((i % 256, 0, 0))})
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    pairs = [record for record in rows_of(tmp_path / "*.tar")]
    read = [record.read() for record in (*pairs, *reversed(pairs))]
    assert read[:300] == read[:-301:-1] and len(set(read)) > 200
    assert len(list(descriptors.iterdir())) <= before + members.MOST_OPEN


def test_no_more_files_are_read_ahead_than_may_be_open():
    alive = most = 0
    lock = threading.Lock()

    def records():
        nonlocal alive, most
        for i in range(500):
            with lock:
                alive += 1
                most = max(most, alive)
            yield None, i, Record(str(i), picture, opens=True)

    loader = Loader(preprocess=Preprocess(32), context_length=None, exif_transpose=False)
    with loading(records(), loader, num_threads=2, read_ahead=256 << 20) as ready:
        for _ in ready:
            with lock:
                alive -= 1
    assert most <= 64 + 2


@contextlib.contextmanager
def no_more_files():
    """No file can be opened inside the block."""
    used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    taken = []
    with limited(resource.RLIMIT_NOFILE, used):
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            yield
        finally:
            for descriptor in taken:
                os.close(descriptor)


def test_running_out_of_open_files_is_no_rows_fault(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    write_tar(tmp_path / "a.tar", {"a.png": picture()})
    parquet(tmp_path / "a.parquet", {"caption": ["x"]})
    (tmp_path / "a.csv").write_text("caption\nx\n")
    record = rows_of(tmp_path / "in")[0]
    shards = [open_input(tmp_path / f"a.{kind}").shards[0] for kind in ("tar", "parquet", "csv")]
    loader = Loader(preprocess=Preprocess(32), context_length=None, exif_transpose=False)
    loader(None, 0, record)
    for shard in shards:
        opened(shard)
    members._OPEN._files.clear()
    with no_more_files():
        with pytest.raises(Exhausted, match="too many open files: raise the limit"):
            loader(None, 0, record)
        for shard in shards:
            with pytest.raises(Exhausted, match="too many open files"):
                opened(shard)


def test_running_out_of_memory_is_no_rows_fault():
    def read():
        raise MemoryError

    loader = Loader(preprocess=Preprocess(32), context_length=None, exif_transpose=False)
    with pytest.raises(Exhausted, match="there is not enough memory"):
        loader(None, 0, Record("a", read))


# --- tables


def test_one_caption_that_is_not_utf8_is_one_row(tmp_path):
    texts = [b"fine %d" % i for i in range(100)]
    texts[40] = b"caf\xe9"
    binary = pa.array(texts, pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 100, binary.buffers())
    parquet(tmp_path / "a.parquet", {"caption": strings})
    found = list(problems(tmp_path / "a.parquet").values())
    assert found[40] == "the column 'caption' is not UTF-8"
    assert found[:40] + found[41:] == [None] * 99


def test_a_damaged_row_group_costs_no_other(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        {"caption": [f"{i}" * 50 for i in range(40)]},
        row_group_size=10,
        use_dictionary=False,
        compression="gzip",
    )
    import pyarrow.parquet as pq

    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 30 : end - 10] = b"\xff" * 20
    path.write_bytes(data)
    found = list(problems(path).values())
    assert [problem is None for problem in found] == [True] * 10 + [False] * 10 + [True] * 20


def test_keys_that_no_text_is_made_of_are_told_at_the_start(tmp_path):
    times = {
        "nanoseconds": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
        "date32": pa.array([2**31 - 1], pa.date32()),
        "timestamp": pa.array([2**62], pa.timestamp("us")),
    }
    for name, column in times.items():
        path = parquet(tmp_path / f"{name}.parquet", {"caption": ["a"], "key": column})
        with pytest.raises(ValueError, match="the key column 'key' is .*Write it as text"):
            open_input(path)
    fine = parquet(tmp_path / "a.parquet", {"caption": ["a"], "key": pa.array([1], pa.date32())})
    assert list(problems(fine)) == ["1970-01-02"]


def test_a_cell_of_any_size_is_a_cell(tmp_path):
    limit = lines.csv.field_size_limit()
    long = "y\n" * 200_000
    (tmp_path / "a.csv").write_text(f'key,caption\na,x\nb,"{long}"\nc,z\n')
    records = rows_of(tmp_path / "a.csv")
    assert [record.key for record in records] == ["a", "b", "c"]
    assert records[1].caption == long
    assert lines.csv.field_size_limit() == limit


def test_a_cell_beyond_the_limit_makes_no_rows_of_its_tail(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_OF_A_CELL", 1000)
    (tmp_path / "a.csv").write_text('key,caption\na,x\nb,"' + "y\n" * 2000 + '"\nc,z\n')
    first, second = rows_of(tmp_path / "a.csv")
    assert first.problem is None and "field larger than field limit" in second.problem


def test_a_quote_that_is_never_closed_is_told(tmp_path):
    (tmp_path / "a.csv").write_text('key,caption\na,x\nb,"y\nc,z\n')
    first, second = rows_of(tmp_path / "a.csv")
    assert first.problem is None
    assert second.problem == "the row is no CSV: a quote in line 3 is never closed"


def test_pairs_refuse_what_trips_the_parsers_in_one_error(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "bytes.csv").write_bytes(b"image,caption\na.png,caf\xe9\n")
    (tmp_path / "long.csv").write_text("image,caption\n" + "x" * 5000 + ".png,a\na.png,b\n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    for name, message in (
        ("deep.jsonl", "row 1: the line is no JSON: its brackets are nested too deep"),
        ("bytes.csv", "bytes.csv: 1 problem:\nrow 1: the row is not UTF-8"),
        ("long.csv", "1 problem:\nrow 1: no such picture: xxx"),
        ("bad.parquet", "bad.parquet"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            open_pairs(tmp_path / name)
    long = "y" * 200_000
    (tmp_path / "cell.csv").write_text(f"image,caption\na.png,{long}\n")
    assert TablePairs(tmp_path / "cell.csv").captions(0) == (long,)


# --- addresses


@pytest.fixture
def store(monkeypatch):
    """Answers by the names of the files, for addresses of a kind of its own."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.spec import AbstractFileSystem

    calls: list[str] = []

    class Answer(Exception):
        def __init__(self, status):
            super().__init__(f"{status}, message='no'")
            self.status = status

    class Wild(AbstractFileSystem):
        protocol = "wild"
        answers: dict = {}

        def cat_file(self, path, start=None, end=None, **options):
            calls.append(path)
            name = path.rpartition("/")[2]
            answer = self.answers.get(name, name)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            if str(answer).isdecimal():
                raise Answer(int(answer))
            return picture()

    fsspec.register_implementation("wild", Wild, clobber=True)
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(addresses, "_HOSTS", addresses._Hosts())
    Wild.calls = calls
    yield Wild
    Wild.clear_instance_cache()


def test_what_an_address_answers_is_its_rows_problem(tmp_path, store):
    rows = ["wild://h/ok", "C://x.png", "wild://h/403", "wild://h/410", "ftp://127.0.0.1:1/x.png"]
    rows += ["http://[", "wild://h/451", "\0", "gopher://x/y", "file:///none.png", "wild://h/ok"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"image": r}) + "\n" for r in rows))
    records = rows_of(tmp_path / "a.jsonl")
    reasons = []
    for record in records:
        try:
            assert record.read() == picture()
            reasons.append("")
        except (OSError, ValueError) as error:
            assert not isinstance(error, Unreachable)
            reasons.append(str(error))
    assert [bool(reason) for reason in reasons] == [False, *[True] * 9, False]
    assert "403, message" in reasons[2] and store.calls.count("wild://h/403") == 1
    assert reasons[4].startswith("gave up after 3 tries: ftp://127.0.0.1:1/x.png: ")
    assert not any("gave up" in reason for i, reason in enumerate(reasons) if i != 4)


@pytest.mark.parametrize("answer", ["500", "503", "429", ConnectionResetError(), TimeoutError()])
def test_what_may_pass_is_tried_three_times(store, answer):
    store.answers = {"x": [answer, answer, "fine"], "y": answer}
    assert read_address("wild://h/x") == picture()
    with pytest.raises(Refused, match="gave up after 3 tries: wild://h/y"):
        read_address("wild://h/y")
    assert store.calls.count("wild://h/y") == 3


def test_a_host_that_is_gone_is_not_waited_for_again_and_again(store):
    store.answers = {"y": ConnectionRefusedError()}
    for _ in range(50):
        with pytest.raises(Refused, match="gave up"):
            read_address("wild://gone/y")
        assert read_address("wild://here/x") == picture()
    assert store.calls.count("wild://gone/y") == 3 * addresses.GIVEN_UP
    with addresses._HOSTS._lock:  # a minute later
        addresses._HOSTS._hosts["wild://gone"].pause = 0.0
    store.answers = {}
    assert read_address("wild://gone/y") == picture()


def test_a_network_that_is_down_stops_the_job_and_marks_few_rows(store):
    store.answers = {"y": TimeoutError("no answer")}
    for i in range(addresses.NO_ANSWER - 1):
        with pytest.raises(Refused, match="gave up after 3 tries"):
            read_address(f"wild://host-{i % 5}/y")
    with pytest.raises(Unreachable, match="64 pictures in a row gave no answer.*network"):
        read_address("wild://host-0/y")


def test_a_store_that_was_never_there_stops_the_job_at_once(store):
    store.answers = {"y": TimeoutError("no answer"), "z": "500"}
    with pytest.raises(Unreachable, match="wild://h/y can't be reached"):
        read_address("wild://h/y", storage("wild://h"))
    with pytest.raises(Refused, match="gave up after 3 tries"):
        read_address("wild://h/z", storage("wild://h"))
    assert read_address("wild://h/x", storage("wild://h")) == picture()
    with pytest.raises(Refused, match="gave up after 3 tries"):
        read_address("wild://h/y", storage("wild://h"))


def test_a_driver_that_is_missing_is_told_by_the_rows_that_need_it(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption\nadl://x/y.png,a\n")
    (record,) = rows_of(tmp_path / "a.csv")
    assert record.problem is None and record.caption == "a"
    with pytest.raises(OSError, match="needs fsspec"):
        record.read()


# --- names


def test_keys_of_a_byte_and_of_its_escape_stay_two(tmp_path):
    names = [os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png", r"a\x5cb.png", r"c\ud800.png", "d.png"]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(picture((i, 0, 0)))
    write_tar(tmp_path / "a.tar", {name: picture((9, i, 0)) for i, name in enumerate(names)})
    records = rows_of(tmp_path)
    assert len({record.key for record in records}) == len(names)
    for record in [*records, *rows_of(tmp_path / "a.tar")]:
        record.path.encode()
        assert read_picture(record.path) == record.read()
    assert [as_name(as_key(name)) for name in names] == names
    path = parquet(tmp_path / "a.parquet", {"caption": ["x", "y"], "key": [b"\xe9", rb"\xe9"]})
    assert len(problems(path)) == 2


def test_a_path_as_an_older_version_wrote_it_is_read(tmp_path):
    (tmp_path / r"caf\xe9.png").write_bytes(picture())
    assert read_picture(str(tmp_path / r"caf\xe9.png")) == picture()


def test_folders_named_like_files_have_pictures(tmp_path):
    for folder in ("x.tar", "y.parquet", "x.tar/z.tar"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(picture())
        assert read_picture(f"{tmp_path}/{folder}/a.png") == picture()
    write_tar(tmp_path / "x.tar" / "b.tar", {"c.tar/d.png": b"D", "d.png": b"E"})
    assert read_picture(f"{tmp_path}/x.tar/b.tar/c.tar/d.png") == b"D"
    assert read_picture(f"{tmp_path}/x.tar/b.tar/d.png") == b"E"
    with pytest.raises(FileNotFoundError):
        read_picture(f"{tmp_path}/x.tar/b.tar/none.png")


def test_an_error_of_the_disk_is_the_rows_own(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture())

    def broken(self, path):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(type(storage("x")), "read", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        rows_of(tmp_path)[0].read()
    assert not isinstance(caught.value, Unreachable)
