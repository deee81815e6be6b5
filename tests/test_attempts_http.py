"""What a server of shards answers is told apart: nothing there, not permitted, not now."""

import contextlib
import http.server
import socket
import threading

import pytest

from clip_jax import attempts
from clip_jax.embed import embed
from clip_jax.errors import Refused, Unreachable
from clip_jax.storage import storage
from tests.archives import write_tar
from tests.embedding_jobs import QUIET, rows
from tests.pictures import noise

pytest.importorskip("aiohttp")


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A server of one shard; gives its address, and the statuses that it answers with at first."""
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    members = {f"{i}.png": noise(i) for i in range(3)}
    data, statuses = write_tar(tmp_path / "a.tar", members).read_bytes(), []

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            status = statuses.pop(0) if statuses else 200
            begin, end = 0, len(data)
            if status == 200 and (asked := self.headers.get("Range")):
                first, last = asked.removeprefix("bytes=").split("-")
                begin, end, status = int(first), min(int(last) + 1, end), 206
            body = data[begin:end] if status < 400 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar", statuses
    server.shutdown()
    server.server_close()


def test_a_server_that_is_busy_as_a_job_begins_is_asked_again(shard, model, tmp_path):
    address, statuses = shard
    statuses += [503, 503, 200, 503, 503]  # to a listing, and to HEAD and GET
    embed(address, model, tmp_path / "out", **QUIET)
    embed(tmp_path / "a.tar", model, tmp_path / "local", **QUIET)
    assert not statuses
    found, expected = rows(tmp_path / "out"), rows(tmp_path / "local")
    assert found["embedding"] == expected["embedding"] and len(found["key"]) == 3


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, FileNotFoundError, "no such file or folder"),
        (410, FileNotFoundError, "no such file or folder"),
        (403, Refused, "403"),
        (503, Unreachable, "can't be reached: .*503"),
    ],
)
def test_only_what_is_not_there_is_said_not_to_be_there(shard, status, kind, words):
    address, statuses = shard
    statuses += [status] * 6
    with pytest.raises(kind, match=words):
        storage(address).stat(address)


def test_a_server_that_does_not_listen_is_not_a_missing_file(monkeypatch):
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar"
        with pytest.raises(Unreachable, match="can't be reached"):
            storage(address).stat(address)
