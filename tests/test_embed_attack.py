"""What an attacker found: inputs and outputs that change, and servers that fail, during a job."""

import errno
import http.server
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from clip_jax import attempts
from clip_jax.embed import embed, read_embeddings, read_results
from clip_jax.search import search
from clip_jax.sources import lines, tar
from clip_jax.sources import parquet as parquet_module
from clip_jax.storage import Refused, Unreachable
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, contents
from tests.pictures import bmp, noise

pytestmark = pytest.mark.usefixtures("compiled_once")

TWO = {**QUIET, "rows_per_part": 2}
SHARDS = {
    "tar": tar.TarShard,
    "parquet": parquet_module.ParquetShard,
    "csv": lines.LinesShard,
    "jsonl": lines.LinesShard,
}


def write_rows(path: Path, first: int) -> Path:
    """A shard of four rows; its size doesn't depend on `first`, below 6."""
    numbers = [*range(first, first + 4)]
    if path.suffix == ".tar":
        return write_tar(path, {f"{i}.bmp": bmp(i) for i in numbers})
    if path.suffix == ".parquet":
        columns = {"key": [*map(str, numbers)], "image": [bmp(i) for i in numbers]}
        return parquet(path, columns, compression="none")
    if path.suffix == ".csv":
        path.write_text("key,caption\n" + "".join(f"{i},a {i}\n" for i in numbers))
    else:
        path.write_text("".join(f'{{"key": "{i}", "caption": "a {i}"}}\n' for i in numbers))
    return path


@pytest.mark.parametrize("kind", SHARDS)
def test_a_shard_written_after_it_was_listed_is_refused_before_its_rows_are_embedded(
    model, tmp_path, monkeypatch, kind
):
    source, out = write_rows(tmp_path / f"a.{kind}", 0), tmp_path / "out"
    size, opened = source.stat().st_size, SHARDS[kind].open

    def other_is_there(self):
        write_rows(source, 4)
        return opened(self)

    monkeypatch.setattr(SHARDS[kind], "open", other_is_there)
    with pytest.raises(ValueError, match=f"a.{kind} was written while the job was starting"):
        embed(source, model, out, **TWO)
    monkeypatch.undo()
    assert not out.exists() and source.stat().st_size == size
    assert embed(source, model, out, **TWO).rows == 4
    assert len(read_embeddings(out).to_table()) == 4


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_parts_of_the_other_format_without_job_json_are_another_jobs(
    model, tmp_path, format: Literal["parquet", "npy"]
):
    source, out = write_rows(tmp_path / "a.tar", 0), tmp_path / "out"
    embed(source, model, out, format=format, **TWO)
    (out / "job.json").unlink()
    before = contents(out)
    other: Literal["parquet", "npy"] = "parquet" if format == "npy" else "npy"
    with pytest.raises(ValueError, match=r"holds parts of another job, [0-9a-f]{16}, and no job"):
        embed(source, model, out, format=other, **TWO)
    assert contents(out) == before
    assert embed(source, model, out, format=format, **TWO).parts == 0


class Web:
    """A web server of one file. `fault` says, for each GET in turn, how it fails."""

    def __init__(self, body: bytes):
        self.body, self.gets, self.has_ranges = body, 0, True
        self.fault: Callable[[int], str] = lambda number: ""
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.send_response(200)
                if web.has_ranges:
                    self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(web.body)))
                self.end_headers()

            def do_GET(self):
                web.gets += 1
                web.answer(self, web.fault(web.gets))

            def log_message(self, format, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def answer(self, handler: http.server.BaseHTTPRequestHandler, fault: str) -> None:
        span = handler.headers.get("Range") if self.has_ranges else None
        begin, _, end = (span or "bytes=0-").removeprefix("bytes=").partition("-")
        last = min(int(end or len(self.body)), len(self.body) - 1)
        body = self.body[int(begin) : last + 1]
        if fault == "503":
            handler.send_error(503)
            return
        handler.close_connection = bool(fault)
        if fault == "drop":
            return
        handler.send_response(206 if span else 200)
        if span:
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.body)}")
        if fault == "short":  # and says so
            body = body[: len(body) // 2]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault == "cut" else body)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server; failed requests are made again at once."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    pictures = [noise(i, size=(200, 200), kind="BMP") for i in range(60)]
    columns = {"key": [f"{i:02d}" for i in range(60)], "image": pictures}
    path = parquet(tmp_path / "a.parquet", columns, compression="none", row_group_size=10)
    web = Web(path.read_bytes())
    yield web
    web.server.shutdown()
    web.server.server_close()
    web.thread.join()


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "short"])
@pytest.mark.parametrize("first", [1, 4])
def test_parquet_on_a_web_server_that_fails_for_a_moment_is_read_again(
    model, tmp_path, web, fault, first
):
    web.fault = lambda number: fault if number in (first, first + 2) else ""
    out = tmp_path / "out"
    assert embed(web.address("a.parquet"), model, out, **QUIET, rows_per_part=30).rows == 60
    assert web.gets > first and not (out / "errors").exists()
    assert embed(web.address("a.parquet"), model, out, **QUIET, rows_per_part=30).parts == 0


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "short"])
@pytest.mark.parametrize("first", [1, 4])
def test_parquet_on_a_web_server_that_goes_on_failing_stops_the_job_and_is_no_damage(
    model, tmp_path, web, fault, first
):
    web.fault = lambda number: fault if number >= first else ""
    out = tmp_path / "out"
    with pytest.raises(Unreachable, match=r"a\.parquet can't be reached"):
        embed(web.address("a.parquet"), model, out, **QUIET, rows_per_part=30)
    assert not (out / "errors").exists()
    web.fault = lambda number: ""
    embed(web.address("a.parquet"), model, out, **QUIET, rows_per_part=30)
    assert len(read_embeddings(out).to_table()) == 60


def test_a_server_that_ignores_ranges_is_named_and_not_the_tar_file(model, tmp_path, web):
    web.body, web.has_ranges = write_rows(tmp_path / "a.tar", 0).read_bytes(), False
    with pytest.raises(Refused, match="sends whole files where a part is asked for: download it"):
        embed(web.address("a.tar"), model, tmp_path / "out", **TWO)


def test_too_many_errors_of_earlier_runs_fail_a_run_with_nothing_to_do(model, tmp_path):
    members = {"good.bmp": bmp(0), **{f"{i}.bmp": b"bad" for i in range(3)}}
    source, out = write_tar(tmp_path / "a.tar", members), "out"
    assert embed(source, model, tmp_path / out, **TWO).errors == 3
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="3 rows could not be embedded, more than max_errors=1; "):
        embed(source, model, tmp_path / out, **TWO, max_errors=1)
    assert contents(tmp_path) == before
    assert embed(source, model, tmp_path / out, **TWO, max_errors=3).parts == 0


def test_numpys_integer_is_a_number_of_rows_and_other_types_are_refused_at_once(model, tmp_path):
    source, out = write_rows(tmp_path / "a.tar", 0), tmp_path / "out"
    number: Any = np.int64(2)
    assert embed(source, model, out, **QUIET, rows_per_part=number).parts == 2
    assert embed(source, model, out, **TWO).parts == 0
    bad: Any
    for bad in (True, 2.0, "2"):
        with pytest.raises(ValueError, match=f"rows_per_part must be an int.* Got {bad!r}"):
            embed(source, model, out, **QUIET, rows_per_part=bad)
    for bad in ("0/2", (0,), (0, True), (0.0, 2)):
        with pytest.raises(ValueError, match=r"shard must be two ints, such as \(0, 2\)"):
            embed(source, model, out, **TWO, shard=bad)


def test_results_are_read_from_a_path(model, tmp_path):
    source = write_rows(tmp_path / "a.tar", 0)
    embed(source, model, tmp_path / "out", **TWO)
    assert len(read_results(tmp_path / "out", ["key"]).table) == 4


def test_a_disk_that_fails_while_a_folder_is_flushed_stops_the_job(model, tmp_path, monkeypatch):
    source, out = write_rows(tmp_path / "a.tar", 0), tmp_path / "out"
    fsync = os.fsync

    def failing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    code = errno.EIO
    with pytest.raises(OSError, match=r"Input/output error.*out"):
        embed(source, model, out, **TWO)
    code = errno.EINVAL  # a file system that can't flush folders
    embed(source, model, out, **TWO)
    assert len(read_embeddings(out).to_table()) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 on other systems")
def test_an_output_whose_name_is_not_utf8_can_be_searched_and_is_read_under_another(
    model, tmp_path
):
    source, out = write_rows(tmp_path / "a.csv", 0), tmp_path / os.fsdecode(b"o\xff")
    embed(source, model, out, **TWO)
    assert embed(source, model, out, **TWO).parts == 0
    assert len(search(out, model, "a", k=9)) == 4
    for read in (read_embeddings, lambda out: read_results(out, ["key"])):
        with pytest.raises(ValueError, match=r"o\\xff: its name is not UTF-8; rename it"):
            read(out)
    out.rename(tmp_path / "out")
    assert len(read_embeddings(tmp_path / "out").to_table()) == 4
    assert embed(source, model, tmp_path / "out", **TWO).parts == 0
