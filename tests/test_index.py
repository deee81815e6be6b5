"""Approximate search: an index names candidates, whose scores are exact."""

import concurrent.futures
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli import index as command
from clip_jax.embed import Incomplete, embed
from clip_jax.search import approximate, build, build_index, has_index, kinds, open_index, search
from tests.archives import write_tar
from tests.calls import runner
from tests.embedding_jobs import QUIET, contents
from tests.models import SMALL_VIT
from tests.pictures import noise

pytest.importorskip("pyarrow")
pytest.importorskip("faiss")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]

COUNT = 300
FORMATS = ("parquet", "npy")


@pytest.fixture(scope="module")
def root(compiled_once, model, tmp_path_factory) -> Path:
    """A model, a shard of pictures with captions, and their embeddings in both formats."""
    root = tmp_path_factory.mktemp("index")
    clip_jax.save(model, root / "model")
    members = {}
    for i in range(COUNT):
        members[f"{i:03d}.png"] = noise(i)
        members[f"{i:03d}.txt"] = f"number {i}".encode()
    write_tar(root / "in.tar", members)
    for format in FORMATS:
        options = {"format": format, "rows_per_part": 70, "what": "both", **QUIET}
        embed(root / "in.tar", root / "model", root / format, **options)
    return root


@pytest.fixture
def folder(root, tmp_path) -> Path:
    """A copy, in which an index may be built."""
    for name in ("model", *FORMATS):
        shutil.copytree(root / name, tmp_path / name)
    shutil.copy(root / "in.tar", tmp_path)
    return tmp_path


def built(out: Path | str, **options):
    return build_index(out, progress=False, threads=1, **options)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_where_all_lists_are_read_an_index_finds_what_exact_search_finds(
    folder, model, kind, format, monkeypatch
):
    monkeypatch.setattr(approximate, "PROBES", 1000)
    done = built(folder / format, kind=kind)
    assert (done.kind, done.rows, done.is_new) == (kind, COUNT, True)
    assert done.lists == (1 if kind == "flat" else 7)
    for query in ("a red bicycle", folder / "q.png"):
        (folder / "q.png").write_bytes(noise(17))
        exact = search(folder / format, model, query, 8)
        found = search(folder / format, model, query, 8, approximate=True)
        assert [hit.pop("score") for hit in found] == pytest.approx(
            [hit.pop("score") for hit in exact], abs=3e-7
        )
        assert found == exact  # keys, paths and captions


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_scores_are_exact_also_where_few_lists_are_read(folder, model, kind, monkeypatch):
    monkeypatch.setattr(approximate, "PROBES", 1)
    monkeypatch.setattr(approximate, "READ", 0)
    built(folder / "parquet", kind=kind)
    scores = {hit["key"]: hit["score"] for hit in search(folder / "parquet", model, "x", COUNT)}
    found = search(folder / "parquet", model, "x", 5, approximate=True)
    assert [hit["score"] for hit in found] == pytest.approx(
        [scores[hit["key"]] for hit in found], abs=3e-7
    )
    assert len(found) == 5


def test_as_many_rows_are_found_as_asked_for(folder, monkeypatch):
    monkeypatch.setattr(approximate, "PROBES", 1)
    monkeypatch.setattr(approximate, "READ", 0)
    built(folder / "parquet", kind="ivf")
    index = open_index(folder / "parquet")
    query = index.embeddings([3])
    for k in (1, 50, COUNT, COUNT + 1):
        scores, numbers = index.search(np.concatenate([query, -query]), k)
        count = min(k, COUNT)
        assert scores.shape == numbers.shape == (2, count)
        assert len(set(numbers[0].tolist())) == count
        assert (np.diff(scores) <= 0).all() and numbers[0][0] == 3
    assert index.rows([299, 3])[0]["key"] == "299"


def test_several_queries_find_what_each_finds_alone(folder):
    built(folder / "npy", kind="sq8")
    index = open_index(folder / "npy", threads=2)
    queries = index.embeddings([5, 200, 77])
    together = index.search(queries, 4)
    for i in range(3):
        alone = index.search(queries[i : i + 1], 4)
        assert np.array_equal(together[0][i], alone[0][0])
        assert np.array_equal(together[1][i], alone[1][0])
    assert together[1][:, 0].tolist() == [5, 200, 77]
    with pytest.raises(ValueError, match=r"shape \(q, 16\)\. Got \(1, 15\)"):
        index.search(queries[:1, :15], 4)
    with pytest.raises(ValueError, match="k must be at least 1. Got 0"):
        index.search(queries, 0)
    for factor in (2, 0, np.nan):
        with pytest.raises(ValueError, match="queries must be normalised. Got"):
            index.search(factor * queries, 1)


def test_threads_share_an_index(folder):
    built(folder / "parquet", kind="pq")
    index = open_index(folder / "parquet")
    queries = index.embeddings(range(0, 300, 20))
    alone = [index.search(query[None], 7)[1].tolist() for query in queries]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        index = open_index(folder / "parquet")  # whose lists no thread has checked yet
        found = pool.map(lambda query: index.search(query[None], 7)[1].tolist(), queries)
        assert list(found) == alone


def test_equal_rows_come_in_the_order_of_the_input(model, tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(["x", "y", "x", "z", "x", "x"]) + "\n")
    embed(tmp_path / "t.txt", model, tmp_path / "out", rows_per_part=2, **QUIET)
    for kind in ("flat", "ivf"):
        built(tmp_path / "out", kind=kind)
        hits = search(tmp_path / "out", model, "x", 3, approximate=True)
        assert [hit["key"] for hit in hits] == ["t.txt:1", "t.txt:3", "t.txt:5"]


def test_the_index_is_the_same_to_the_bit_however_often_it_is_built(folder):
    path = folder / "parquet" / "index.faiss"
    found = []
    for memory in (4.0, 0.007):
        built(folder / "parquet", kind="pq", memory=memory)
        found.append(path.read_bytes())
        path.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rows", "kind", "lists"),
    [
        (1, "flat", 1),
        (20_000, "flat", 1),
        (20_001, "ivf", 128),
        (200_000, "ivf", 512),
        (1_000_000, "pq", 1024),
        (10_000_000, "pq", 4096),
        (10**12, "pq", 65536),
    ],
)
def test_the_kind_suits_the_number_of_rows(rows, kind, lists):
    layout = kinds.design(rows, rows)
    assert (layout.kind, layout.lists) == (kind, lists)
    assert kinds.sampled(layout, rows) <= rows


@pytest.mark.parametrize("dim", [1, 7, 16, 512, 640, 768, 1152])
def test_pq_keeps_a_byte_for_eight_dimensions(dim):
    index = kinds.untrained(kinds.design(300, 300, "pq"), dim)
    assert index.code_size == max(dim // 8, 1) and dim % index.code_size == 0


def test_the_command_line_knows_the_same_kinds_and_memory():
    assert (command.KINDS, command.MEMORY) == (kinds.KINDS, build.MEMORY)


# --- when it is there, and when it is not


def test_an_index_that_is_there_is_left_alone(folder, capsys):
    run, path = runner(capsys), folder / "parquet" / "index.faiss"
    assert not has_index(folder / "parquet")
    status, out, err = run("index", folder / "parquet")
    assert (status, err) == (0, []) and out.startswith(f"{path}: flat, 300 rows in 1 list, ")
    assert has_index(folder / "parquet")
    before = path.stat()
    status, out, _ = run("index", folder / "parquet")
    assert status == 0 and out.startswith(f"{path} is there already: flat, 300 rows")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    status, out, _ = run("index", folder / "parquet", "--kind", "ivf", "--threads", 1)
    assert status == 0 and "ivf, 300 rows in 7 lists" in out
    assert path.stat().st_ino != before.st_ino


def test_the_command_searches_by_the_index(folder, capsys):
    run, out = runner(capsys), folder / "parquet"
    (folder / "q.png").write_bytes(noise(4))
    query = (folder / "q.png", "--image", "-k", 4, "--json", "--html", folder / "page.html")
    run("index", out)
    status, printed, err = run("search", out, *query, "--approximate")
    assert (status, err) == (0, [])
    hits = json.loads(printed)
    assert hits[0]["key"] == "004" and hits[0]["caption"] == "number 4" and len(hits) == 4
    page = (folder / "page.html").read_text()
    assert page.count("data:image/jpeg") == 5
    exact = json.loads(run("search", out, *query)[1])
    assert [hit["key"] for hit in hits] == [hit["key"] for hit in exact]
    lines = run("search", out, "x", "--approximate", "-k", 2)[1].splitlines()
    assert len(lines) == 3 and lines[0].split() == ["score", "key", "caption"]


def test_object_stores_have_indexes_too(folder, model):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for format in FORMATS:
        out = f"memory://index/{format}"
        for name, content in contents(folder / format).items():
            memory.pipe_file(f"/index/{format}/{name}", content)
        assert not has_index(out)
        built(out, kind="ivf")
        built(folder / format, kind="ivf")
        assert (
            memory.cat_file(f"/index/{format}/index.faiss")
            == (folder / format / "index.faiss").read_bytes()
        )
        found = search(out, model, "x", approximate=True)
        assert found == search(folder / format, model, "x", approximate=True)
        with warnings.catch_warnings():
            assert not built(out, kind="ivf").is_new


def test_rows_that_the_job_lacks_are_said_by_both_commands(folder, model, capsys):
    run, out = runner(capsys), folder / "parquet"
    (out / "part-000000-000002.parquet").unlink()
    status, printed, err = run("index", out)
    assert status == 1 and "flat, 230 rows" in printed
    assert len(err) == 1 and "70 rows are left out" in err[0]
    with pytest.warns(Incomplete, match="70 rows are left out"):
        hits = search(out, model, "x", COUNT, approximate=True)
    assert len(hits) == 230
    assert run("search", out, "x", "--approximate")[0] == 1


def test_the_model_and_the_query_are_checked_as_in_exact_search(folder, model, tmp_path):
    built(folder / "parquet")
    with pytest.raises(ValueError, match="k must be at least 1. Got 0"):
        search(folder / "parquet", model, "x", 0, approximate=True)
    (folder / "q.png").write_bytes(noise(1))
    with pytest.raises(ValueError, match="is a picture's file, expected a text"):
        search(folder / "parquet", model, str(folder / "q.png"), approximate=True)
    image = Image.open(folder / "q.png")
    assert search(folder / "parquet", None, image, 1, approximate=True)[0]["key"] == "001"
    assert SMALL_VIT.embed_dim == 16
