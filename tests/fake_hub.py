"""The Hugging Face Hub on this machine: repositories of a few files, served well or badly."""

import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

COMMIT, OLD_COMMIT = "a" * 40, "b" * 40


class Hub:
    """Serves repositories; remembers what it was asked for."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}  # by the repository's name
        self.revisions = {"main": COMMIT, "old": OLD_COMMIT, COMMIT: COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.private: set[str] = set()  # need a token
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.fetched: list[str] = []  # files whose content was sent
        self.cut_after: int | None = None  # bytes of a file before it hangs up
        self.status: int | None = None  # instead of any answer
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self, self.headers)

            def do_HEAD(self):
                outer.answer(self, self.headers)

            def log_message(self, format, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler, headers) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.asked.append(f"{handler.command} {path}")
        parts = path.strip("/").split("/")
        is_listing = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_listing else parts[:2])
        rest = parts[4:] if is_listing else parts[2:]
        if self.status:
            return self._fail(handler, self.status, "")
        if name not in self.files or (
            name in self.private and headers.get("Authorization") != "Bearer hf_secret"
        ):
            return self._fail(handler, 401, "RepoNotFound")
        revision = self.revisions.get(rest[1]) if len(rest) > 1 else None
        if revision is None:
            return self._fail(handler, 404, "RevisionNotFound")
        if is_listing:
            siblings = [{"rfilename": file} for file in self.files[name]]
            body = json.dumps({"id": name, "sha": revision, "siblings": siblings}).encode()
            return self._send(handler, body, {"Content-Type": "application/json"})
        if name in self.gated:
            return self._fail(handler, 403, "GatedRepo")
        file = "/".join(rest[2:])
        if file not in self.files[name]:
            return self._fail(handler, 404, "EntryNotFound")
        body = self.files[name][file]
        etag = hashlib.sha256(body).hexdigest()
        if handler.command == "GET":
            self.fetched.append(file)
        self._send(handler, body, {"ETag": f'"{etag}"', "X-Repo-Commit": revision}, self.cut_after)

    def _send(self, handler, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        handler.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body[:cut])
            if cut is not None:
                handler.close_connection = True

    def _fail(self, handler, status: int, code: str) -> None:
        handler.send_response(status)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
