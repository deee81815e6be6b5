"""Servers of `clip-jax serve` in this process, and what they serve."""

import contextlib
import http.client
import io
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip_jax
from clip_jax.embed import Columns, embed
from clip_jax.weights.opened import DEFAULTS
from tests.archives import parquet
from tests.embedding_jobs import QUIET, shared_programs
from tests.pictures import noise
from tests.processes import wait_until

COUNT = 60
GROUPS = ("sea", "hills", "<b>town</b>")
# What must stay text wherever it is shown.
ODD = '<img src=x onerror=alert(1)> & "quotes" \'; DROP TABLE rows; --'


class Answer:
    """What a server has answered."""

    def __init__(self, response: http.client.HTTPResponse):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


class Served:
    """A server that runs in a thread."""

    def __init__(self, port: int, application: Any):
        self.port, self.application = port, application
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str, headers: dict[str, str] | None = None, **values: Any) -> Answer:
        """Asks for a path, with parameters; several for a list."""
        query = urllib.parse.urlencode(values, doseq=True)
        return self.ask("GET", path + (f"?{query}" if query else ""), headers=headers)

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
        """Sends any request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            return Answer(connection.getresponse())

    def connect(self) -> socket.socket:
        """Connects, and sends nothing."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def serving(app: Any, application: Any = None) -> Iterator[Served]:
    """Serves an application on a free port."""
    uvicorn = pytest.importorskip("uvicorn")
    from clip_jax.serve import server

    listener = server._listening("127.0.0.1", 0)
    running = uvicorn.Server(server._settings(app))
    running.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: running.started)
        yield Served(listener.getsockname()[1], application)
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()


def application(out: Path, model: Any = None, **options: Any) -> Any:
    """An application that is ready."""
    pytest.importorskip("starlette")
    from clip_jax.serve import server

    how = {"exact": False, "fetch": False, "is_local": True, "token": None} | options
    made, searcher = server._application(str(out), model, DEFAULTS, **how)
    searcher.prepare()
    return made


def jpegs(count: int) -> list[bytes]:
    """Pictures of different sizes."""
    return [noise(i) for i in range(count)]


def write_collection(root: Path, model: Any, count: int = COUNT) -> Path:
    """A model, a table of pictures with other columns, and their embeddings."""
    clip_jax.save(model, root / "model")
    table = {
        "image": jpegs(count),
        "key": [f"k{i:03d}" for i in range(count)],
        "caption": [ODD if i == 3 else f"picture {i}" for i in range(count)],
        "group": [GROUPS[i % 3] for i in range(count)],
        "year": [1990 + i % 40 for i in range(count)],
        "title": [None if i == 5 else f"Title {i}" for i in range(count)],
        "weight": [i / 4 for i in range(count)],
        "sold": [i % 2 == 0 for i in range(count)],
    }
    parquet(root / "in.parquet", table)
    columns = Columns(others=("group", "year", "title", "weight", "sold"))
    options = {"columns": columns, "rows_per_part": 7, **QUIET}
    with shared_programs():
        embed(root / "in.parquet", root / "model", root / "out", **options)
    return root


@pytest.fixture(scope="session")
def collection(model, tmp_path_factory) -> Path:
    """A folder with `in.parquet`, `model` and `out`, to be read only."""
    return write_collection(tmp_path_factory.mktemp("served"), model)


@pytest.fixture(scope="session")
def served(collection) -> Iterator[Served]:
    """A server of the collection that is ready."""
    made = application(collection / "out")
    with serving(made.app, made) as found:
        yield found


@pytest.fixture(scope="session")
def embeddings(collection) -> np.ndarray:
    """(COUNT, d): the embeddings of the collection, in order."""
    from clip_jax.embed import embeddings_of, read_embeddings

    return embeddings_of(read_embeddings(collection / "out").to_table(), "embedding")


def write_many(root: Path, model: Any, count: int) -> Path:
    """What a job of so many rows would have left; every tenth has a picture, one of a few."""
    import pyarrow as pa

    from clip_jax.embed.chunks import divide
    from clip_jax.embed.parts import Part
    from clip_jax.embed.results import finished_job, parts_of

    (root / "in").mkdir(parents=True)
    for i, data in enumerate(jpegs(24)):
        (root / "in" / f"{i:02d}.png").write_bytes(data)
    with shared_programs():
        embed(root / "in", model, root / "out", **QUIET)
    parts = parts_of(str(root / "out"), finished_job(str(root / "out")))
    rng = np.random.default_rng(0)
    for chunk in divide(0, count, 8192):
        drawn = rng.standard_normal((len(chunk), model.config.embed_dim)).astype(np.float32)
        names = [f"{i:05d}" for i in range(chunk.begin, chunk.end)]
        files = [root / "in" / f"{i // 10 % 24:02d}.png" for i in range(chunk.begin, chunk.end)]
        paths = [None if i % 10 else str(file) for i, file in enumerate(files, chunk.begin)]
        table = pa.table({"key": names, "path": pa.array(paths, pa.string())})
        unit = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        digests = np.zeros(len(chunk), np.uint64)
        parts.write(chunk, count, Part(table, {"embedding": unit}, digests), [])
    return root / "out"


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    from tests.command_line import _bomb

    return _bomb()


def encoded(image: Any, kind: str) -> bytes:
    """A PIL image as a file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
