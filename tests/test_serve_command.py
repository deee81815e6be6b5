"""`clip-jax serve` as a command: its address, its end, and what it refuses to begin."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import quickly
from tests.calls import runner
from tests.processes import wait_until

pytest.importorskip("pyarrow")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("compiled_once")]

HALF = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen, int]]:
    """The command in another process, from another folder, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_jax", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=arguments[0],
        env=os.environ | quickly.ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"60 rows at http://127\.0\.0\.1:(\d+)/", line)
        assert found, (line, process.stderr and process.stderr.read())
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()


def ask(port: int, path: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_and_ends_at_once(collection, number, status):
    with started(collection / "out") as (process, port):
        code, health = ask(port, "/healthz")  # while it compiles
        assert code == 503 and health["status"] == "starting"
        if number == signal.SIGINT:
            wait_until(lambda: ask(port, "/healthz")[0] == 200, 120)
            assert len(ask(port, "/api/search?q=x")[1]) == 10
        # Clients that are in the middle of something don't hold it.
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(HALF)
            process.send_signal(number)
            out, err = process.communicate(timeout=8)
    word = {130: "interrupted", 143: "terminated"}[status]
    assert process.returncode == status and out == ""
    assert err == f"clip-jax: {word}; nothing is lost: the same command serves the page again\n"


@pytest.fixture
def run(collection, monkeypatch, capsys):
    monkeypatch.chdir(collection)
    return runner(capsys)


def test_a_port_in_use_is_one_line(run):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        status, out, err = run("serve", "out", "--port", port)
    assert (status, out) == (1, "")
    assert err == [
        f"clip-jax: port {port} of 127.0.0.1 is in use: give another, such as --port {port + 1}, "
        "or end what listens there"
    ]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("serve", "out", "--host", "0.0.0.0"), 1, "--host 0.0.0.0 can be reached from other"),
        (("serve", "out", "--host", "no.such.host.invalid", "--token", "x"), 1, "is no address"),
        (("serve", "out", "--token", " "), 1, "--token must not be empty"),
        (("serve", "out", "--port", "65536"), 2, "expected a port, from 0 to 65535"),
        (("serve", "out", "--port", "x"), 2, "expected a port"),
        (("serve", "nowhere", "--port", "0"), 1, "is no output of clip-jax embed"),
        (("serve", "out", "--port", "0", "--model", "RN5"), 1, "RN5"),
        (("serve",), 2, "DIR"),
    ],
)
def test_what_can_not_begin_is_one_line(run, argv, status, message):
    code, out, err = run(*argv)
    assert (code, out, len(err)) == (status, "", 1)
    assert message in err[0]


def test_without_starlette_or_uvicorn_the_extra_is_named(collection):
    script = (
        "import sys; sys.modules |= dict.fromkeys(('starlette', 'uvicorn'))\n"
        f"from clip_jax.cli import main; sys.exit(main(['serve', {str(collection / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "pip install 'clip-jax-flax[serve]'" in line
