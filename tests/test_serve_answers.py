"""What `clip-jax serve` answers is what the command answers, and what the embeddings say."""

import concurrent.futures
import io
import threading

import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.embed import embed
from clip_jax.nn import normalize
from clip_jax.search import search
from tests.embedding_jobs import QUIET
from tests.pictures import noise
from tests.processes import wait_until
from tests.serving import COUNT, GROUPS, ODD, application, serving

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


def same(found: list[dict], expected: list[dict]) -> None:
    """The same rows in the same order, all they say included; scores but for their rounding."""
    scores = [[hit.pop("score") for hit in hits] for hits in (found, expected)]
    assert found == expected
    assert np.allclose(*scores, atol=2e-6)


def keys(hits: list[dict]) -> list[str]:
    return [hit["key"] for hit in hits]


@pytest.fixture(scope="module")
def embed_text(model):
    """The normalised embedding of a text, by the model itself."""
    return lambda text: np.asarray(normalize(model.encode_text(clip_jax.tokenize(text))))[0]


@pytest.mark.parametrize("text", ["a red bicycle", ODD, "\u732b \U0001f408", "word " * 90])
def test_a_text_is_answered_as_by_the_command(served, collection, text):
    found = served.get("/api/search", q=text, k=9)
    assert found.status == 200 and found.headers["content-type"] == "application/json"
    same(found.json, search(collection / "out", None, text.strip(), 9))


def test_a_picture_is_answered_as_by_the_command(served, collection):
    data = noise(200)
    found = served.ask("POST", "/api/search?k=7", data)
    same(found.json, search(collection / "out", None, Image.open(io.BytesIO(data)), 7))


def test_a_picture_that_was_sent_is_remembered_by_its_identifier(served):
    first = served.ask("POST", "/api/search?k=5&details=1", noise(201)).json
    again = served.get("/api/search", picture=first["picture"], k=5).json
    assert keys(again) == keys(first["hits"])
    both = served.get("/api/search", picture=first["picture"], q="x", k=COUNT).json
    assert [h["score"] for h in both[:5]] != [h["score"] for h in again]


def test_more_like_a_row_are_its_nearest_without_itself(served, embeddings):
    order = np.argsort(-(embeddings @ embeddings[17]), kind="stable")
    for name, value in (("row", 17), ("key", "k017")):
        found = served.get("/api/similar", **{name: value}, k=6).json
        assert keys(found) == [f"k{i:03d}" for i in order[1:7]]


def test_concepts_are_added_and_subtracted_as_embeddings(served, embeddings, embed_text):
    found = served.get("/api/search", q="a dog", plus=["snow", "sun"], minus="night", k=COUNT).json
    vector = embed_text("a dog") + embed_text("snow") + embed_text("sun") - embed_text("night")
    scores = embeddings @ (vector / np.linalg.norm(vector))
    assert keys(found) == [f"k{i:03d}" for i in np.argsort(-scores)]
    assert np.allclose([hit["score"] for hit in found], np.sort(scores)[::-1], atol=2e-6)


def test_pages_are_the_parts_of_one_ranking(served):
    whole = keys(served.get("/api/search", q="pages", k=COUNT).json)
    parts = [
        keys(served.get("/api/search", q="pages", k=7, offset=i).json) for i in range(0, 63, 7)
    ]
    assert sum(parts, []) == whole and len(set(whole)) == COUNT
    assert served.get("/api/search", q="pages", k=7, offset=COUNT).json == []


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        (["group=sea"], lambda i: i % 3 == 0),
        ([f"group='{GROUPS[2]}'"], lambda i: i % 3 == 2),
        (["group!=sea"], lambda i: i % 3),
        (["year>=2000", "year < 2005"], lambda i: 2000 <= 1990 + i % 40 < 2005),
        (["year=1993"], lambda i: i % 40 == 3),
        (["weight<=1.5"], lambda i: i / 4 <= 1.5),
        (["sold=true"], lambda i: i % 2 == 0),
        (["title~TITLE 1"], lambda i: i == 1 or 10 <= i < 20),
        (["title!=Title 1"], lambda i: i not in (1, 5)),
        (["caption~; drop table"], lambda i: i == 3),
        (["group in sea, 'nothing'"], lambda i: i % 3 == 0),
        (["year in 1990,1993"], lambda i: i % 40 in (0, 3)),
        (["group=nothing"], lambda i: False),
    ],
)
def test_conditions_choose_among_the_rows(served, where, holds):
    expected = {f"k{i:03d}" for i in range(COUNT) if holds(i)}
    ranked = keys(served.get("/api/search", q="x", where=where, k=COUNT).json)
    whole = [key for key in keys(served.get("/api/search", q="x", k=COUNT).json) if key in expected]
    assert ranked == whole
    assert keys(served.get("/api/rows", where=where, k=COUNT).json) == sorted(expected)


def test_texts_in_a_table_that_are_numbers_are_compared_as_numbers(model, tmp_path):
    from clip_jax.embed import Columns

    rows = "".join(f"t{i},{i},{i if i else 'none'}\n" for i in range(12))
    (tmp_path / "t.csv").write_text("caption,number,mixed\n" + rows)
    columns = Columns(others=("number", "mixed"))
    embed(tmp_path / "t.csv", model, tmp_path / "out", columns=columns, **QUIET)
    made = application(tmp_path / "out", model)
    with serving(made.app) as found:
        hits = found.get("/api/rows", where="number>=9").json
        assert [hit["caption"] for hit in hits] == ["t9", "t10", "t11"]
        hits = found.get("/api/rows", where="mixed>=9").json
        assert [hit["caption"] for hit in hits] == ["t9", "t10", "t11"]
        hits = found.get("/api/rows", where="mixed!=9", k=20).json  # of text that is no number, too
        assert len(hits) == 11
        kinds = {each["name"]: each["kind"] for each in found.get("/api/about").json["columns"]}
        assert kinds == {"number": "choice", "mixed": "choice", "caption": "text"}
        hits = found.get("/api/search", q="t7", k=1).json
        assert hits[0]["path"] is None and hits[0]["caption"] == "t7"


def test_details_have_what_the_page_shows(served):
    found = served.get("/api/search", q="x", k=COUNT, details=1).json
    assert found["total"] == COUNT and found["milliseconds"] > 0 and found["like"] is None
    like = served.get("/api/similar", row=3, details=1).json["like"]
    assert (like["row"], like["key"], like["caption"]) == (3, "k003", ODD)
    hit = next(hit for hit in found["hits"] if hit["row"] == 5)
    assert hit["columns"] == {
        "group": GROUPS[2],
        "year": 1995,
        "title": None,
        "weight": 1.25,
        "sold": False,
    }
    about = served.get("/api/about").json
    assert about["rows"] == COUNT and about["columns"][0]["values"] == sorted(GROUPS)


def test_several_searches_share_a_call_of_the_encoder(served, monkeypatch):
    alone = {i: served.get("/api/search", q=f"words {i}", k=5).json for i in range(24)}
    searcher = served.application._searcher
    calls, go = [], threading.Event()
    answer, embedded = searcher.answer, searcher._encoder.texts
    monkeypatch.setattr(searcher, "_texts", type(searcher._texts)(4096))
    monkeypatch.setattr(searcher, "_rankings", type(searcher._rankings)(100))

    def held(items):
        go.wait(20)
        return answer(items)

    monkeypatch.setattr(served.application._batcher, "_answer", held)
    monkeypatch.setattr(
        searcher._encoder, "texts", lambda tokens: calls.append(len(tokens)) or embedded(tokens)
    )
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        asked = {i: pool.submit(served.get, "/api/search", q=f"words {i}", k=5) for i in alone}
        waiting = served.application._batcher._queue
        wait_until(lambda: waiting.qsize() >= 8)
        go.set()
        for i, future in asked.items():
            same(future.result().json, alone[i])
    assert sum(calls) == 24 and len(calls) <= 4 and max(calls) > 8


def test_until_the_programs_are_compiled_it_says_so_and_rows_can_be_looked_at(served, monkeypatch):
    searcher = served.application._searcher
    monkeypatch.setattr(searcher, "_ready", set())
    monkeypatch.setattr(searcher, "step", "compiling for 8 texts")
    found = served.get("/api/search", q="x")
    assert (found.status, found.headers["retry-after"]) == (503, "1")
    assert found.error == "not ready yet: compiling for 8 texts"
    found = served.get("/healthz")
    assert found.status == 503 and found.json["step"] == "compiling for 8 texts"
    assert served.get("/api/rows", k=3).status == 200
    monkeypatch.setattr(searcher, "step", None)
    assert served.get("/healthz").json == {"status": "ok", "rows": COUNT}


def test_what_is_ready_is_answered_while_the_rest_is_compiled(served, monkeypatch):
    searcher = served.application._searcher
    done, run = [], {"texts": searcher._encoder.texts, "images": searcher._encoder.images}
    long, picture = "words " * 20, noise(9)

    def answered(what, rows):
        """What is answered just before a program is compiled."""
        found = [
            served.get("/api/similar", row=3),
            served.get("/api/search", q=f"unseen {len(done)}"),
            served.ask("POST", "/api/search", picture),
            served.get("/api/search", q=f"{long} {len(done)}"),
        ]
        done.append((what, [answer.status for answer in found]))
        assert all("not ready yet" in answer.error for answer in found if answer.status != 200)
        return run[what](rows)

    monkeypatch.setattr(searcher, "_ready", set())
    monkeypatch.setattr(searcher, "step", "starting")
    for what in run:
        monkeypatch.setattr(
            searcher._encoder,
            what,
            lambda rows, what=what: (
                run[what](rows)
                if threading.current_thread() is not threading.main_thread()
                else answered(what, rows)
            ),
        )
    searcher.prepare()
    assert [what for what, _ in done] == ["texts", "texts", "images", "texts", "texts"]
    no = 503
    assert [statuses for _, statuses in done] == [
        [200, no, no, no],
        [200, no, no, no],
        [200, 200, no, no],
        [200, 200, 200, no],
        [200, 200, 200, no],
    ]
    assert served.get("/api/search", q=long).status == 200


def test_both_formats_and_object_stores_are_served(model, collection, tmp_path):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    options = {"format": "npy", "rows_per_part": 9, **QUIET}
    embed(collection / "in.parquet", collection / "model", tmp_path / "npy", **options)
    for file in (tmp_path / "npy").rglob("*"):
        if file.is_file():
            name = file.relative_to(tmp_path / "npy")
            memory.pipe_file(f"/serve/{name}", file.read_bytes())
    for out in (tmp_path / "npy", "memory://serve"):
        made = application(out)
        with serving(made.app) as found:
            same(found.get("/api/search", q="x").json, search(out, None, "x"))
            assert found.get("/thumbnails/4").status == 200
