"""The Hugging Face Hub's data sets on this machine, as its file system asks for them."""

import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class DataSets:
    """Serves repositories of data sets; remembers which bytes of which files it sent."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}  # by the repository's name
        self.gated: set[str] = set()
        self.failing = 0  # how many of the next reads fail
        self.sent: list[tuple[str, int]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def do_HEAD(self):
                outer.answer(self)

            def do_POST(self):
                outer.answer(self)

            def log_message(self, format, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        asked = json.loads(handler.rfile.read(length) or b"{}") if length else {}
        parts = unquote(urlsplit(handler.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "datasets"]
        name = "/".join(parts[2:4] if is_api else parts[1:3])
        rest = parts[4:] if is_api else parts[3:]
        if name not in self.files:
            return self._send(handler, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if name in self.gated and not is_api:
            return self._send(handler, 403, b"", {"X-Error-Code": "GatedRepo"})
        files = self.files[name]
        if not is_api:
            return self._send_file(handler, "/".join(rest[2:]), files)
        if rest[:1] == ["tree"]:
            prefix = "/".join(rest[2:])
            recursive = "recursive=True" in handler.path or "recursive=true" in handler.path
            return self._send_json(handler, self._tree(files, prefix, recursive))
        if rest[:1] == ["paths-info"]:
            found = [self._entry(path, files) for path in asked["paths"] if path in files]
            return self._send_json(handler, found)
        siblings = [{"rfilename": file} for file in files]
        self._send_json(handler, {"id": name, "sha": COMMIT, "siblings": siblings})

    def _tree(self, files: dict[str, bytes], prefix: str, recursive: bool) -> list[dict]:
        found: dict[str, dict] = {}
        for path in files:
            if prefix and not path.startswith(f"{prefix}/"):
                continue
            inside = path[len(prefix) + 1 if prefix else 0 :].split("/")
            above = prefix
            for folder in inside[:-1][: None if recursive else 1]:
                above = f"{above}/{folder}".strip("/")
                oid = hashlib.sha1(above.encode()).hexdigest()
                found[above] = {"type": "directory", "path": above, "oid": oid, "size": 0}
            if recursive or len(inside) == 1:
                found[path] = self._entry(path, files)
        return list(found.values())

    def _entry(self, path: str, files: dict[str, bytes]) -> dict:
        data = files[path]
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "path": path, "oid": oid, "size": len(data)}

    def _send_file(self, handler, path: str, files: dict[str, bytes]) -> None:
        if path not in files:
            return self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.failing:
            self.failing -= 1
            return self._send(handler, 400 if self.failing < 0 else 502, b"", {})
        data, headers = files[path], {"Accept-Ranges": "bytes"}
        begin, end = 0, len(data)
        if wanted := handler.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) + 1 if last else end, end)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.sent.append((path, end - begin))
        self._send(handler, 206 if wanted else 200, data[begin:end], headers)

    def _send_json(self, handler, document) -> None:
        self._send(handler, 200, json.dumps(document).encode(), {})

    def _send(self, handler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        headers = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT} | headers
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
