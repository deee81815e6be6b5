"""`clip-jax serve` takes an index for approximate search where it fits, and says where not."""

import shutil
from pathlib import Path

import pytest

from clip_jax.search import build_index
from clip_jax.search.approximate import ApproximateIndex
from tests.pictures import noise
from tests.serving import COUNT, application, serving

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytest.importorskip("faiss")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


@pytest.fixture
def indexed(collection, tmp_path) -> Path:
    out = Path(shutil.copytree(collection / "out", tmp_path / "out"))
    build_index(out, progress=False)
    return out


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """How many queries each search in an index had."""
    found, search = [], ApproximateIndex.search

    def counted(self, queries, k):
        found.append(len(queries))
        return search(self, queries, k)

    monkeypatch.setattr(ApproximateIndex, "search", counted)
    return found


def test_an_index_is_used_for_searches_without_filters(served, indexed, searches):
    made = application(indexed)
    with serving(made.app) as found:
        for values in ({"q": "a dog"}, {"row": 5}, {"q": "a dog", "plus": "snow"}):
            theirs = served.get("/api/search", k=COUNT, **values).json
            assert [h["key"] for h in found.get("/api/search", k=COUNT, **values).json] == [
                hit["key"] for hit in theirs
            ]
        assert len(searches) == 3
        found.get("/api/search", q="a cat", where="year>2000")
        found.get("/api/search", q="a cat", exact=1)
        assert len(searches) == 3
        assert found.ask("POST", "/api/search", noise(3)).status == 200
        assert len(searches) == 4


def test_with_exact_no_index_is_used(indexed, searches):
    made = application(indexed, exact=True)
    with serving(made.app) as found:
        assert found.get("/api/search", q="a dog").status == 200
    assert not searches


def test_an_index_of_no_use_is_said_and_all_rows_are_compared(indexed, searches, capsys):
    (indexed / "index.faiss").write_bytes((indexed / "index.faiss").read_bytes()[:50])
    made = application(indexed)
    assert "all rows are compared, as the index can't be used" in capsys.readouterr().err
    with serving(made.app) as found:
        assert len(found.get("/api/search", q="a dog").json) == 10
    assert not searches


def test_an_index_that_fails_later_is_given_up(indexed, monkeypatch, capsys):
    def damaged(self, queries, k):
        raise ValueError("its lists are damaged")

    monkeypatch.setattr(ApproximateIndex, "search", damaged)
    made = application(indexed)
    with serving(made.app) as found:
        assert len(found.get("/api/search", q="a dog").json) == 10
        assert "its lists are damaged" in capsys.readouterr().err
        assert len(found.get("/api/search", q="a cat").json) == 10
        assert not capsys.readouterr().err
