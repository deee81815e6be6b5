"""A server on this machine that serves one file, well or badly."""

import contextlib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clip_jax.catalog
from clip_jax.catalog import CATALOG, CatalogEntry
from clip_jax.convert.pytorch import to_pytorch
from clip_jax.weights import download
from tests.model_files import VIT
from tests.models import random_parameters
from tests.pickles import entries_of, parts, program, zipped


class Server:
    """Serves one file, well or badly."""

    def __init__(self, body: bytes):
        self.body = body
        self.ranges = True  # whether it knows them
        self.cut_after: list[int] = []  # for each request in turn, bytes before it hangs up
        self.status: list[int] = []  # for each request in turn, instead of an answer
        self.content_type = "application/octet-stream"
        self.requests: list[str | None] = []  # the Range of each
        self.stall_after: int | None = None  # bytes before it waits for `go`
        self.go = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        self.url = f"{self.base}/file.bin"
        self.sha256 = hashlib.sha256(body).hexdigest()
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        span = handler.headers.get("Range")
        self.requests.append(span)
        if self.status:
            handler.send_error(self.status.pop(0))
            return
        start = int(span.removeprefix("bytes=").rstrip("-")) if span and self.ranges else 0
        if start and start >= len(self.body):
            handler.send_error(416)
            return
        body = self.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            end = len(self.body)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.cut_after:
            body = body[: self.cut_after.pop(0)]
        with contextlib.suppress(ConnectionError):
            if self.stall_after is not None:
                handler.wfile.write(body[: self.stall_after])
                handler.wfile.flush()
                self.go.wait(20)
                body = body[self.stall_after :]
            handler.wfile.write(body)

    def close(self) -> None:
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server():
    """A server of a file of some megabytes."""
    server = Server(np.random.default_rng(0).bytes(2_000_003))
    yield server
    server.close()


@pytest.fixture
def no_pause(monkeypatch):
    """A download that failed is tried again at once."""
    monkeypatch.setattr(download, "PAUSE", 0.0)


def fetch(server: Server, path: Path) -> None:
    """Downloads the file that it serves."""
    download.fetch(server.url, server.sha256, path, progress=False)


@contextlib.contextmanager
def serving_tiny(monkeypatch) -> Iterator[Server]:
    """A server of the official file of a model named "tiny", which the catalog knows meanwhile."""
    tensors, storages = parts(to_pytorch(VIT, random_parameters(VIT)))
    server = Server(zipped(entries_of(program(tensors), storages)))
    entry = CatalogEntry("tiny", VIT, "tiny.pt", server.sha256, 0, 0, 0.0)
    monkeypatch.setitem(CATALOG, "tiny", entry)
    monkeypatch.setattr(clip_jax.catalog, "_BASE", server.base)
    yield server
    server.close()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A server of a model named "tiny", and an empty cache."""
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving_tiny(monkeypatch) as server:
        yield server
