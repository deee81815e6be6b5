"""Several queries in one pass over the rows: each is answered as if it were alone."""

import numpy as np
import pytest

from clip_jax.embed import embed
from clip_jax.embed.results import finished_job
from clip_jax.search import exact, several
from clip_jax.search.index import Index
from clip_jax.search.several import ExactIndex
from tests.archives import parquet
from tests.embedding_jobs import QUIET

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]

COUNT = 200


@pytest.fixture(scope="module", params=["float32", "float16"])
def out(request, compiled_once, model, tmp_path_factory) -> str:
    """Embeddings of texts, each of which is there twice."""
    root = tmp_path_factory.mktemp("several")
    texts = [f"text {i % (COUNT // 2)}" for i in range(COUNT)]
    parquet(root / "in.parquet", {"caption": texts})
    options = {"dtype": request.param, "rows_per_part": 30, **QUIET}
    embed(root / "in.parquet", model, root / "out", **options)
    return str(root / "out")


@pytest.fixture
def queries() -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((19, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def index_of(out: str) -> Index:
    return Index(out, finished_job(out))


@pytest.mark.parametrize("block", [1, 700, 100_000])
def test_each_query_finds_what_a_search_for_it_alone_finds(out, queries, block, monkeypatch):
    monkeypatch.setitem(exact.BLOCK, "cpu", block)
    ks = [1 + 5 * i for i in range(len(queries))]
    found = ExactIndex(index_of(out)).search(queries, ks)
    for query, k, (scores, numbers) in zip(queries, ks, found, strict=True):
        theirs, rows = exact.best_rows(index_of(out), query, k)
        assert numbers.tolist() == rows
        assert np.allclose(scores, theirs, atol=1e-6)


def test_scores_do_not_depend_on_the_other_queries(out, queries):
    index = ExactIndex(index_of(out))
    together = index.search(queries, [20] * len(queries))
    for i, (scores, numbers) in enumerate(together):
        ((alone, rows),) = index.search(queries[i : i + 1], [20])
        assert np.array_equal(scores, alone) and np.array_equal(numbers, rows)


def test_equal_rows_come_in_the_order_of_the_input(out, queries):
    half = COUNT // 2
    ((scores, numbers),) = ExactIndex(index_of(out)).search(queries[:1], [COUNT])
    assert np.array_equal(scores[::2], scores[1::2])
    assert np.array_equal(numbers[::2] + half, numbers[1::2])
    for k in (1, 3, 7):  # also where the last of them are cut off
        ((_, cut),) = ExactIndex(index_of(out)).search(queries[:1], [k])
        assert np.array_equal(cut, numbers[:k])


def test_masks_choose_rows_for_each_query(out, queries):
    index = ExactIndex(index_of(out))
    mask = np.arange(COUNT) % 7 == 0
    none = np.zeros(COUNT, bool)
    whole, some, nothing = index.search(queries[[0, 0, 0]], [COUNT, 10, 10], [None, mask, none])
    assert len(whole[1]) == COUNT and len(nothing[1]) == 0
    assert some[1].tolist() == [n for n in whole[1].tolist() if n % 7 == 0][:10]


def test_embeddings_are_those_of_the_rows(out):
    index = ExactIndex(index_of(out))
    everything = np.empty((COUNT, 16), index_of(out).dtype)
    index_of(out).read(0, COUNT, everything)
    assert np.array_equal(index.embeddings([3, 199, 3]), everything[[3, 199, 3]].astype("f4"))


def test_rows_of_damaged_parts_are_left_out(out, queries, monkeypatch):
    index = ExactIndex(index_of(out))
    ((_, before),) = index.search(queries[:1], [COUNT])
    name, begin, end = index_of(out).bounds()[2]
    index.leave_out([name])
    ((_, after),) = index.search(queries[:1], [COUNT])
    assert after.tolist() == [n for n in before.tolist() if not begin <= n < end]
    assert index.num_lost == end - begin
    with pytest.raises(ValueError, match="all parts are damaged"):
        index.leave_out([part for part, _, _ in index_of(out).bounds()])


def test_impossible_values_are_a_damaged_part(out, queries, monkeypatch):
    read = Index.read

    def spoiled(self, begin, end, target, skip=frozenset()):
        read(self, begin, end, target, skip)
        if begin <= 65 < end and self.part_of(65) not in skip:
            target[65 - begin] = np.inf

    monkeypatch.setattr(Index, "read", spoiled)
    monkeypatch.setattr(several, "THREADS", 1)
    index = ExactIndex(index_of(out))
    ((_, numbers),) = index.search(queries[:1], [COUNT])
    assert set(numbers.tolist()) == set(range(COUNT)) - set(range(60, 90))
