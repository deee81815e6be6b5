"""Embedding jobs on a Ray cluster: the parts are those of a job in one process, to the bit."""

import contextlib
import http.server
import importlib
import threading

import pytest

from clip_jax.embed import Columns, embed
from tests import ray_clusters
from tests.archives import parquet, write_tar
from tests.embedding_jobs import QUIET, contents, errors, lasting, lose, rows
from tests.pictures import noise
from tests.ray_clusters import cluster_of, faulty, joined, once
from tests.ray_site.sitecustomize import CRASHING

pytest.importorskip("ray")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cluster", "compiled_once")]
OPTIONS = {"rows_per_part": 7, **QUIET}
RAY = {"engine": "ray", **OPTIONS}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The file that makes the disks of the cluster's nodes full."""
    with faulty(tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(full):
    """Two nodes besides the head, which has no CPU."""
    with cluster_of(2) as found, joined(found.address):
        yield found


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple]:
    """The same pictures in every kind of input, some broken, with what to embed of them."""
    root = tmp_path_factory.mktemp("sources")
    images = {f"{i:02d}": noise(i) for i in range(20)} | {"05": b"no picture", "13": b""}
    captions = [f"the picture {i}, of {'many ' * (i % 9)}words" for i in range(20)]
    (root / "folder" / "sub").mkdir(parents=True)
    for i, (name, data) in enumerate(images.items()):
        place = root / "folder" / ("sub" if i % 3 else "")
        (place / f"{name}.png").write_bytes(data)
        (place / f"{name}.txt").write_text(captions[i])
    for shard in range(2):
        members: dict = {f"{name}.png": data for name, data in images.items()}
        members |= {f"{n}.txt": c.encode() for n, c in zip(images, captions, strict=True)}
        write_tar(root / f"{shard}.tar", members)
    with (root / "1.tar").open("r+b") as file:
        file.truncate(20_000)
    columns = {
        "image": list(images.values()),
        "caption": captions,
        "weight": [i / 7 for i in range(20)],
    }
    parquet(root / "in.parquet", columns, row_group_size=3)
    (root / "texts.txt").write_text("\n".join(captions))
    return {
        "folder": (root / "folder", {"what": "both"}),
        "tars": (root / "*.tar", {"what": "both"}),
        "parquet": (root / "in.parquet", {"columns": Columns(others=("weight",))}),
        "npy": (root / "in.parquet", {"what": "both", "format": "npy", "dtype": "float16"}),
        "texts": (root / "texts.txt", {}),
    }


@pytest.mark.parametrize("kind", ["folder", "tars", "parquet", "npy", "texts"])
def test_parts_are_those_of_one_process_to_the_bit(sources, model, tmp_path, kind):
    source, options = sources[kind]
    here = embed(source, model, tmp_path / "local", **OPTIONS, **options)
    there = embed(source, model, tmp_path / "ray", **RAY, **options)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert (there.rows, there.errors, there.parts) == (here.rows, here.errors, here.parts)
    assert here.rows
    assert here.errors or kind == "texts"


def test_either_engine_goes_on_where_the_other_was_stopped(pictures, model, undisturbed, copy):
    lose(copy, 1, 4)
    summary = embed(pictures, model, copy, **RAY)
    assert (summary.parts, summary.rows_before) == (2, 26)
    assert contents(copy) == contents(undisturbed)
    lose(copy, 0)
    assert embed(pictures, model, copy, **OPTIONS).parts == 1
    assert contents(copy) == contents(undisturbed)
    assert embed(pictures, model, copy, **RAY).parts == 0


def test_rows_that_failed_are_tried_again_and_join_their_parts(model, tmp_path):
    pictures = tmp_path / "in"
    pictures.mkdir()
    for i in range(9):
        (pictures / f"{i}.png").write_bytes(b"" if i in (2, 8) else noise(i))
    embed(pictures, model, tmp_path / "out", **RAY)
    assert set(errors(tmp_path / "out")) == {"2.png", "8.png"}
    (pictures / "2.png").write_bytes(noise(2))
    embed(pictures, model, tmp_path / "out", retry_errors=True, **RAY)
    assert set(errors(tmp_path / "out")) == {"8.png"}
    embed(pictures, model, tmp_path / "anew", **OPTIONS)
    assert lasting(tmp_path / "out") == lasting(tmp_path / "anew")


def test_a_picture_that_crashes_its_decoder_becomes_an_error_and_the_others_are_embedded(
    model, tmp_path, monkeypatch
):
    said = []  # by Ray, on standard error
    worker = importlib.import_module("ray._private.worker")
    monkeypatch.setattr(worker, "_unhandled_error_handler", said.append)
    pictures = tmp_path / "in"
    pictures.mkdir()
    for i in range(10):
        (pictures / f"{i}.png").write_bytes(CRASHING if i == 3 else noise(i))
    summary = embed(pictures, model, tmp_path / "out", **RAY)
    assert (summary.rows, summary.errors) == (9, 1)
    assert errors(tmp_path / "out") == {"3.png": "decoding it crashed its process, 3 times"}
    assert said == []
    (pictures / "3.png").write_bytes(b"")  # what one process can do
    embed(pictures, model, tmp_path / "local", **OPTIONS)
    assert rows(tmp_path / "out") == rows(tmp_path / "local")


@pytest.mark.parametrize("kind", ["ray::ChunkEncoder", "ray::IDLE"])
def test_processes_that_are_killed_cost_their_chunks_and_nothing_more(
    pictures, model, tmp_path, undisturbed, kind
):
    def has_begun() -> bool:
        return any(tmp_path.glob("part-*")) and bool(ray_clusters.processes_of(kind))

    with once(has_begun, lambda: ray_clusters.kill(kind)) as killed:
        summary = embed(pictures, model, tmp_path, encoders=2, **RAY)
    assert killed and killed[0]
    assert (summary.rows, summary.errors, summary.parts) == (40, 0, 6)
    assert contents(tmp_path) == contents(undisturbed)


def test_a_full_disk_ends_the_job_and_keeps_what_is_finished(
    pictures, model, tmp_path, undisturbed, full
):
    out = tmp_path / "out"
    with once(lambda: any(out.glob("part-*")), full.touch):
        try:
            with pytest.raises(OSError, match="No space left on device") as caught:
                embed(pictures, model, out, **RAY | {"rows_per_part": 1})
        finally:
            full.unlink(missing_ok=True)
    assert str(caught.value.filename).startswith(str(out))
    assert not list(out.rglob("*.aside"))
    kept = len(list(out.glob("part-*")))
    assert 1 <= kept < 40
    assert embed(pictures, model, out, **RAY | {"rows_per_part": 1}).parts == 40 - kept


@contextlib.contextmanager
def store_with_bursts(pictures: list[bytes]):
    """A server of pictures that answers 503 twice before it gives each; gives its address."""
    asked = dict.fromkeys(range(len(pictures)), 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            number = int(self.path.strip("/").removesuffix(".png"))
            asked[number] += 1
            if asked[number] <= 2:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(pictures[number])))
            self.end_headers()
            self.wfile.write(pictures[number])

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_store_that_fails_in_bursts_is_asked_again(model, tmp_path):
    pytest.importorskip("aiohttp")
    images = [noise(i) for i in range(2)]
    with store_with_bursts(images) as address:
        (tmp_path / "in.csv").write_text(f"image\n{address}/0.png\n{address}/1.png\n")
        summary = embed(tmp_path / "in.csv", model, tmp_path / "out", **RAY)
    assert (summary.rows, summary.errors) == (2, 0)


def test_no_more_rows_fail_than_are_allowed(model, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="rows could not be embedded, more than max_errors=2"):
        embed(tmp_path / "in", model, tmp_path / "out", max_errors=2, **RAY)
