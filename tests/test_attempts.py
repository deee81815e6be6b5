"""Remote calls that fail: what is tried again, and what lasts."""

import http.server
import threading

import pytest

from clip_jax import attempts
from clip_jax.sources.addresses import forget, read_address

pytest.importorskip("aiohttp")
BODY = bytes(range(256)) * 40


@pytest.fixture
def cutting(monkeypatch):
    """A server that hangs up in the middle of its first answers; gives the address and requests."""
    monkeypatch.setattr(attempts, "WAITS", (0.0, 0.0))
    cuts, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[: cuts.pop(0)] if cuts else BODY)
            self.close_connection = True

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/a.png"
    forget(address)
    yield address, cuts, requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_body_that_is_cut_off_is_asked_for_again(cutting):
    address, cuts, requests = cutting
    cuts += [500, 0]
    assert read_address(address) == BODY
    assert len(requests) == 3


def test_a_body_that_is_always_cut_off_is_given_up_after_three_tries(cutting):
    address, cuts, requests = cutting
    cuts += [500] * 9
    with pytest.raises(OSError, match="gave up after 3 tries: .*a.png"):
        read_address(address)
    assert len(requests) == 3
