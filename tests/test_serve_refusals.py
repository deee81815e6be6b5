"""Bad requests to `clip-jax serve` get one clear error; others are answered meanwhile."""

import contextlib
import re
import socket
import time

import pytest

from clip_jax.serve import bodies, connections
from clip_jax.serve.batches import Batcher
from clip_jax.serve.guard import Guard
from clip_jax.serve.refusals import Refusal
from tests.pictures import noise
from tests.serving import COUNT, GROUPS, ODD, bomb, serving

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]


POST = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to search for"),
        ({"q": "  "}, "nothing to search for"),
        ({"minus": "x"}, "nothing to search for"),
        ({"q": "x", "k": "0"}, "k must be a whole number from 1 to 1,000. Got '0'"),
        ({"q": "x", "k": "1001"}, "from 1 to 1,000"),
        ({"q": "x", "k": "-1"}, "k must be a whole number"),
        ({"q": "x", "k": "1.5"}, "k must be a whole number"),
        ({"q": "x", "k": "\u0663"}, "k must be a whole number"),
        ({"q": "x", "k": "9" * 5000}, "k must be a whole number"),
        ({"q": "x", "offset": "-1"}, "offset must be a whole number from 0 on"),
        ({"q": "x", "offset": "9991"}, r"offset \+ k must be at most 10,000. Got 10,001"),
        ({"q": ["x", "y"]}, "q may be given once. Got it 2 times"),
        ({"q": "x" * 2001}, "may have 2,000 characters"),
        ({"q": "x", "plus": list("abcdefghi")}, "8 concepts may be given. Got 9"),
        ({"q": "x", "limit": "3"}, "there is no parameter 'limit'; those known are q, picture"),
        ({"q": "x", "details": "yes"}, "details must be 0 or 1"),
        ({"q": "x", "where": "price=3"}, "there is no column 'price'; the columns are key"),
        ({"q": "x", "where": "1=1; DROP TABLE rows"}, "there is no column '1'"),
        ({"q": "x", "where": "year"}, "expected a condition as where: a column"),
        ({"q": "x", "where": "year>=new"}, "year has numbers: year>=10. Got 'new'"),
        ({"q": "x", "where": "year in 1990,new"}, "year has numbers: year in 10. Got 'new'"),
        ({"q": "x", "where": "group="}, "expected a value after = in 'group=', in quotes where it"),
        ({"q": "x", "where": "year~19"}, "~ is for columns of text; year is int64"),
        ({"q": "x", "where": "sold=maybe"}, "sold is true or false"),
        ({"q": "x", "minus": "x"}, "leaves nothing to search for"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(served, values, message):
    found = served.get("/api/search", **values)
    assert found.status == 400 and set(found.json) == {"error"}
    assert re.search(message, found.error), found.error


@pytest.mark.parametrize(
    ("path", "values", "status", "message"),
    [
        ("/api/similar", {"key": "unknown"}, 404, "there is no row with the key 'unknown'"),
        ("/api/similar", {"key": ODD}, 404, "there is no row with the key"),
        ("/api/similar", {"key": "../../etc/passwd"}, 404, "there is no row with the key"),
        ("/api/similar", {"row": COUNT}, 404, f"there is no row {COUNT}; the last is {COUNT - 1}"),
        ("/api/similar", {}, 400, "give the row that results are to be like"),
        ("/api/similar", {"key": "k001", "row": 1}, 400, "key or row, not both"),
        ("/api/search", {"picture": "0" * 32}, 404, "not remembered any more: send it again"),
        ("/api/rows", {"q": "x"}, 400, "there is no parameter 'q'"),
        ("/api/nothing", {}, 404, "nothing at this address"),
    ],
)
def test_what_is_not_there_is_said(served, path, values, status, message):
    found = served.get(path, **values)
    assert found.status == status and message in found.error


def test_html_and_sql_are_words_like_others(served):
    for text in (
        ODD,
        "'; DROP TABLE rows; --",
        "<script>alert(1)</script>",
        "\0\x1b[31m",
        "{{7*7}}",
    ):
        found = served.get("/api/search", q=text, k=2)
        assert found.status == 200 and len(found.json) == 2
        assert found.headers["content-type"] == "application/json"
    assert len(served.get("/api/rows", where=f"group='{GROUPS[2]}'", k=COUNT).json) == COUNT // 3


@pytest.mark.parametrize("kind", ["bomb", "cut", "text", "svg", "nothing"])
def test_a_picture_that_is_none_is_refused(served, kind):
    data = {
        "bomb": bomb(),
        "cut": noise(1)[:200],
        "text": b"not a picture",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        "nothing": b"",
    }[kind]
    found = served.ask("POST", "/api/search", data)
    assert found.status == 400
    assert "picture" in found.error and "Traceback" not in found.error
    assert served.get("/api/search", q="x").status == 200


def test_a_body_of_100_mb_is_refused_before_it_is_read(served):
    with served.connect() as connection:
        connection.sendall(POST + b"Content-Length: 100000000\r\n\r\n")  # and none of the body
        assert b"413" in connection.recv(1000).partition(b"\r\n")[0]


def test_a_body_of_unknown_length_is_refused_where_it_becomes_too_large(served):
    with served.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        block = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(22):
            connection.sendall(block)
        assert b"413" in connection.recv(1000).partition(b"\r\n")[0]  # more could come


def test_what_all_clients_send_together_is_bounded(served, monkeypatch):
    monkeypatch.setattr(bodies, "MOST_TOGETHER", 1000)
    found = served.ask("POST", "/api/search", noise(5))
    assert found.status == 503 and "too many pictures at once" in found.error
    monkeypatch.undo()
    assert served.ask("POST", "/api/search", noise(5)).status == 200


def test_200_slow_clients_leave_the_others_alone(served, monkeypatch):
    monkeypatch.setattr(connections, "HEAD", 3.0)
    monkeypatch.setattr(bodies, "SECONDS", 3.0)
    data = noise(9)
    heads = [
        b"GET /api/search?q=x HTTP/1.1\r\nHost: loc",
        b"",
        POST + b"Content-Length: %d\r\n\r\n" % len(data) + data[:100],
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",  # and never reads the answer
    ]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(served.connect()) for _ in range(200)]
        for i, connection in enumerate(slow):
            connection.sendall(heads[i % 4])
        begin = time.monotonic()
        for i in range(5):
            assert served.get("/api/search", q=f"quick {i}").status == 200
            assert served.ask("POST", "/api/search", noise(i)).status == 200
        assert time.monotonic() - begin < 10
        for i, connection in enumerate(slow[:3]):  # they are let go
            connection.settimeout(20)
            answer = (
                b"".join(iter(lambda c=connection: c.recv(4096), b""))
                if i < 2
                else (connection.recv(4096))
            )
            assert (b"408" in answer) == (i == 2)


def test_more_searches_than_may_wait_are_refused():
    import asyncio
    import threading

    go = threading.Event()

    def answer(items):
        go.wait(20)
        return items

    async def run():
        batcher = Batcher(answer, most=2, waiting=4)
        first = [asyncio.create_task(batcher.ask(i)) for i in range(2)]
        await asyncio.sleep(0.1)  # they are being answered
        rest = [asyncio.create_task(batcher.ask(i)) for i in range(2, 6)]
        await asyncio.sleep(0.1)
        with pytest.raises(Refusal, match="too many searches at once"):
            await batcher.ask(7)
        go.set()
        assert await asyncio.gather(*first, *rest) == [0, 1, 2, 3, 4, 5]

    asyncio.run(run())


def test_a_batch_that_fails_fails_alone():
    import asyncio

    def answer(items):
        if "bad" in items:
            raise MemoryError("no memory")
        return items

    async def run():
        batcher = Batcher(answer, most=1, waiting=4)
        with pytest.raises(MemoryError):
            await batcher.ask("bad")
        assert await batcher.ask("good") == "good"

    asyncio.run(run())


# --- who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]"]
)
def test_names_of_other_machines_are_refused(served, host):
    found = served.get("/api/rows", headers={"Host": host})
    assert found.status == 421 and "http://127.0.0.1" in found.error


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:1", "[::1]:80"])
def test_names_of_this_machine_are_taken(served, host):
    assert served.get("/api/rows", headers={"Host": host}).status == 200


def test_other_sites_may_link_to_the_page_and_nothing_else(served):
    def from_elsewhere(mode, kind):
        names = ("Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest")
        return dict(zip(names, ("cross-site", mode, kind), strict=True))

    link, image = from_elsewhere("navigate", "document"), from_elsewhere("no-cors", "image")
    assert served.get("/", headers=link).status == 200
    assert served.get("/", headers=from_elsewhere("navigate", "iframe")).status == 403
    assert served.get("/api/rows", headers=link).status == 403
    assert served.get("/thumbnails/1", headers=image).status == 403


@pytest.fixture(scope="module")
def guarded(served):
    """A server that listens elsewhere too, with a token."""
    app = Guard(served.application.app._app, is_local=False, token="s3cret")
    with serving(app) as found:
        yield found


@pytest.mark.parametrize(
    "path", ["/api/search?q=x", "/api/rows", "/thumbnails/1", "/serve.css", "/"]
)
def test_without_the_token_nothing_is_answered(guarded, path):
    for headers in (
        {},
        {"Authorization": "Bearer s3cre"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic s3cret"},
        {"Cookie": "clip_jax=1"},
    ):
        assert guarded.get(path, headers=headers).status == 401
    assert guarded.get("/healthz").status == 200


def test_a_browser_shows_the_token_once_and_programs_in_a_header(guarded):
    assert guarded.get("/", token="wrong").status == 401
    found = guarded.get("/", token="s3cret", q="a b")
    assert (found.status, found.headers["location"]) == (303, "/?q=a+b")
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "s3cret" not in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    assert guarded.get("/api/search", q="x", headers=session).status == 200
    bearer = {"Authorization": b"Bearer s3cret"}
    assert guarded.get("/api/search", q="x", headers=bearer).status in (200, 401)
    assert guarded.get("/api/rows", headers={"Authorization": "Bearer s3cret"}).status == 200
    assert guarded.get("/api/rows", headers={**session, "Host": "search.example"}).status == 200


def test_every_answer_has_the_policy(served):
    for path in ("/", "/api/rows", "/nothing", "/thumbnails/1", "/main.js"):
        headers = served.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_other_methods_are_refused(served):
    for method, path in (
        ("PUT", "/api/search"),
        ("POST", "/api/rows"),
        ("DELETE", "/thumbnails/1"),
    ):
        assert served.ask(method, path).status == 405


def test_what_is_no_http_ends_the_connection(served):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9\r\n\r\n",
        b"\0" * 100_000,
    ):
        with served.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(20)
                assert not connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert served.get("/healthz").status == 200
