"""The application: what each address answers."""

import asyncio
import concurrent.futures
import hashlib
import importlib.resources
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from clip_jax.search.several import AllDamaged
from clip_jax.serve.batches import Batcher
from clip_jax.serve.bodies import Bodies
from clip_jax.serve.guard import Guard
from clip_jax.serve.pictures import Pictures
from clip_jax.serve.queries import SEARCH, parsed, whole
from clip_jax.serve.queries import Request as Wanted
from clip_jax.serve.refusals import Refusal, bad
from clip_jax.serve.searcher import (
    PICTURES,
    REQUESTS,
    ROWS,
    Embed,
    Ranking,
    Searcher,
    timed,
)
from clip_jax.storage import is_remote

# Requests that may wait for a search.
WAITING = 512
# Threads that decode pictures.
DECODERS = min(4, os.cpu_count() or 1)
# Seconds in which a browser doesn't ask for a thumbnail again.
FRESH = 24 * 3600
_SIMILAR = tuple(name for name in SEARCH if name not in ("q", "picture"))
_ROWS = ("where", "k", "offset", "details")
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Application:
    """Answers requests about one job.

    Attributes:
        app: what a server runs, in the protocol ASGI.
    """

    def __init__(
        self,
        searcher: Searcher,
        pictures: Pictures,
        reader: Callable[[bytes], Embed],
        facts: dict[str, Any],
        *,
        is_local: bool = True,
        token: str | None = None,
    ):
        """Starts the threads; answers 503 to what the searcher isn't ready for.

        Args:
            searcher: answers searches.
            pictures: the pictures of the rows.
            reader: decodes pictures that clients send.
            facts: what the page says of the job, as plain JSON; `version` changes with the rows.
            is_local: whether the server listens on this machine's own address.
            token: what clients have to show; None for nothing.
        """
        self._searcher, self._pictures, self._reader = searcher, pictures, reader
        self._facts, self._bodies = facts, Bodies()
        self._batcher: Batcher[Wanted | Embed] = Batcher(
            searcher.answer, most=REQUESTS, waiting=WAITING
        )
        self._decoders = concurrent.futures.ThreadPoolExecutor(DECODERS, "clip-jax-pictures")
        routes = [
            Route("/healthz", self._said(self._health)),
            Route("/api/search", self._said(self._search), methods=["GET", "POST"]),
            Route("/api/similar", self._said(self._similar)),
            Route("/api/rows", self._said(self._rows)),
            Route("/api/about", self._said(self._about)),
            Route("/thumbnails/{row}", self._said(self._thumbnail)),
            Route("/originals/{row}", self._said(self._original)),
            *(Route(path, _static(data, kind)) for path, (data, kind) in _files().items()),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such})
        app.router.redirect_slashes = False  # a name with a slash behind it is another name
        self.app: ASGIApp = Guard(app, is_local=is_local, token=token)

    def _said(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable:
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Refusal as refusal:
                headers = {"Retry-After": "1"} if refusal.status == 503 else None
                return _json({"error": refusal.message}, refusal.status, headers)
            except OSError as error:  # a disk or a store fails
                why = error.strerror or str(error)
                return _json({"error": f"the rows can't be read now: {why}"}, 503)
            except AllDamaged as error:
                return _json({"error": f"the rows can't be read: {error}"}, 503)

        return answer

    async def _health(self, request: Request) -> Response:
        if self._searcher.step is not None:
            return _json({"status": "starting", "step": self._searcher.step}, 503)
        return _json({"status": "ok", "rows": self._searcher.index.num_rows})

    async def _about(self, request: Request) -> Response:
        columns = await self._in_thread(self._searcher.columns.described)
        left_out = self._facts["left_out"] + self._searcher.index.num_lost
        return _json({**self._facts, "left_out": left_out, "columns": columns})

    async def _search(self, request: Request) -> Response:
        wanted, key = self._parsed(request, SEARCH)
        self._searcher.check_ready(PICTURES if request.method == "POST" else ROWS)
        if request.method == "POST":
            if wanted.query.picture or wanted.query.like is not None or key is not None:
                raise bad("give a picture as the body, or picture, row or key; not several")
            picture = await self._in_thread(self._reader, await self._bodies.read(request))
            await self._batcher.ask(picture)
            wanted = _with(wanted, picture=picture.identifier)
        return await self._answer(wanted, key)

    async def _similar(self, request: Request) -> Response:
        wanted, key = self._parsed(request, _SIMILAR)
        if key is None and wanted.query.like is None:
            raise bad("give the row that results are to be like: key=... or row=...")
        self._searcher.check_ready(ROWS)
        return await self._answer(wanted, key)

    async def _answer(self, wanted: Wanted, key: str | None) -> Response:
        begin = time.perf_counter()
        if key is not None:
            if wanted.query.like is not None:
                raise bad("give key or row, not both")
            number = await self._in_thread(self._searcher.columns.number_of, key)
            if number is None:
                raise Refusal(404, f"there is no row with the key {key[:200]!r}")
            wanted = _with(wanted, like=number)
        if wanted.query.is_empty():
            raise bad("nothing to search for: give q=..., a picture, or row=...")
        return self._shown(await self._batcher.ask(wanted), wanted, begin)

    async def _rows(self, request: Request) -> Response:
        begin = time.perf_counter()
        wanted, _ = self._parsed(request, _ROWS, last=None)
        return self._shown(await self._in_thread(self._searcher.first, wanted), wanted, begin)

    def _shown(self, ranking: Ranking, wanted: Wanted, begin: float) -> Response:
        rows = self._searcher.rows(ranking.numbers.tolist())
        others, hits = self._searcher.columns.others, []
        scores = [None] * len(rows) if ranking.scores is None else ranking.scores.tolist()
        for number, score, row in zip(ranking.numbers.tolist(), scores, rows, strict=True):
            path = row.get("path", row.get("image_path"))
            hit = {"key": row["key"], "score": score, "path": path}
            if "caption" in row:
                hit["caption"] = row["caption"]
            if wanted.details:
                link = path if path and is_remote(path) and path.startswith("http") else None
                more = {name: row[name] for name in others if name in row}
                hit |= {"row": number, "link": link, "columns": more}
            hits.append(hit)
        if not wanted.details:
            return _json(hits)
        query = wanted.query
        return _json(
            {
                "hits": hits,
                "offset": wanted.offset,
                "total": ranking.total,
                "version": self._facts["version"],
                "picture": query.picture or None,
                "like": None if query.like is None else self._named(query.like),
                "milliseconds": timed(begin),
            }
        )

    def _named(self, number: int) -> dict[str, Any]:
        """Returns what names a row that the results are like."""
        (row,) = self._searcher.rows([number])
        path = row.get("path", row.get("image_path"))
        return {"row": number, "key": row["key"], "path": path, "caption": row.get("caption")}

    async def _thumbnail(self, request: Request) -> Response:
        number, path = self._path_of(request)
        headers = self._caching(number)
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        data = await self._in_thread(self._pictures.thumbnail, number, path)
        return Response(data, headers=headers, media_type="image/jpeg")

    async def _original(self, request: Request) -> Response:
        number, path = self._path_of(request)
        data, media, is_shown = await self._in_thread(self._pictures.original, path)
        headers = {"Cache-Control": "private, no-cache"}
        headers["Content-Security-Policy"] = "default-src 'none'; img-src 'self'; sandbox"
        if not is_shown:
            headers["Content-Disposition"] = "attachment"
        return Response(data, headers=headers, media_type=media)

    def _path_of(self, request: Request) -> tuple[int, str | None]:
        number = whole(request.path_params["row"])
        if number is None or number >= self._searcher.index.num_rows:
            raise Refusal(404, "there is no such row")
        (row,) = self._searcher.rows([number])
        return number, row.get("path", row.get("image_path"))

    def _caching(self, number: int) -> dict[str, str]:
        # The page has the version in the address: a restart with other rows shows no old picture.
        return {
            "ETag": f'"{self._facts["version"]}-{number}"',
            "Cache-Control": f"private, max-age={FRESH}",
        }

    def _parsed(
        self, request: Request, known: tuple[str, ...], **limits: Any
    ) -> tuple[Wanted, str | None]:
        items = request.query_params.multi_items()
        return parsed(items, self._searcher.columns.types, known, **limits)

    async def _in_thread(self, function: Callable, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, function, *arguments)


def _with(wanted: Wanted, **changes: Any) -> Wanted:
    import dataclasses

    return dataclasses.replace(wanted, query=dataclasses.replace(wanted.query, **changes))


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII: keys may hold what UTF-8 can't encode.
    text = json.dumps(document, allow_nan=False)
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(text, status, headers, "application/json")


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    why = {404: "there is nothing at this address", 405: "not by this method"}
    return JSONResponse({"error": why.get(error.status_code, error.detail)}, error.status_code)


def _files() -> dict[str, tuple[bytes, str]]:
    """Returns the files of the page, each by its address, with its type."""
    package = importlib.resources.files("clip_jax")
    found = {}
    for file in sorted(package.joinpath("serve/page").iterdir(), key=lambda file: file.name):
        kind = file.name.rpartition(".")[2]
        if kind in _TYPES:
            data = file.read_bytes()
            if kind == "css":  # the look of all our pages, and what only this one has
                data = package.joinpath("page.css").read_bytes() + b"\n" + data
            path = "/" if file.name == "index.html" else f"/{file.name}"
            found[path] = data, _TYPES[kind]
    return found


def _static(data: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    return answer
