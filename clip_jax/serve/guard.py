"""Who may ask, and what browsers may do with the answers."""

import hashlib
import hmac
import html
import urllib.parse

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "::1")
# Anybody may ask whether the server is there.
OPEN = ("/healthz",)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_ASK = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>clip-jax</title>
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><form method="get" action="/"><p>{why}</p>
<p><input type="password" name="token" aria-label="Token" autofocus> <button>Open</button></p>
</form></body></html>
"""


class Guard:
    """Lets requests pass that come from this server's own page or from who has the token.

    A page of another site could reach a server on 127.0.0.1 through its visitor's browser, under a
    name of its own that it has resolve to that address (DNS rebinding): only names of this machine
    are taken there. Elsewhere the token is asked for, in a cookie that `/?token=` sets or as
    `Authorization: Bearer`.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool, token: str | None):
        """Guards an application.

        Args:
            app: the application.
            is_local: whether the server listens on this machine's own address.
            token: what has to be shown; None for nothing.
        """
        self._app, self._is_local, self._token = app, is_local, token
        # Cookies are shared by all ports of a host, and by whoever listens there: it isn't the
        # token itself, and other servers of ours have other names for theirs.
        if token is not None:
            self._proof = hmac.digest(token.encode(), b"clip-jax cookie", "sha256").hex()
            self._cookie = f"clip_jax_{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes the request on; adds the headers to what is answered."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (k.lower().encode(), v.encode())
                        for k, v in HEADERS.items()
                        if k.lower().encode() not in names
                    ),
                ]
            await send(message)

        refused = self._refused(Request(scope))
        await (self._app if refused is None else refused)(scope, receive, with_headers)

    def _refused(self, request: Request) -> Response | None:
        if self._is_local and _name_of(request.headers.get("host", "")) not in LOCAL:
            return _plain(
                421,
                "this server answers under the names of this machine alone: open "
                "it as http://127.0.0.1 or http://localhost",
            )
        # Other sites' pages may link here, and nothing else.
        is_foreign = request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
        is_link = (
            request.headers.get("sec-fetch-mode") == "navigate"
            and request.headers.get("sec-fetch-dest", "document") == "document"
            and request.url.path == "/"
        )
        if is_foreign and not is_link:
            return _plain(403, "other sites' pages may not ask this server")
        if self._token is None or request.url.path in OPEN:
            return None
        given = request.query_params.get("token")
        if request.url.path == "/" and request.method == "GET" and given is not None:
            if not _is_same(given, self._token):
                return HTMLResponse(_ASK.format(why=html.escape("This is not the token.")), 401)
            others = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
            address = "/" + (f"?{urllib.parse.urlencode(others)}" if others else "")
            answer = RedirectResponse(address, 303, {"Cache-Control": "no-store"})
            answer.set_cookie(self._cookie, self._proof, httponly=True, samesite="lax", path="/")
            return answer
        if self._may_pass(request):
            return None
        if request.url.path == "/":
            why = "The token with which this server was started:"
            return HTMLResponse(_ASK.format(why=why), 401)
        return _plain(
            401,
            "the token is missing: open /?token=... in the browser once, or send "
            "the header Authorization: Bearer ...",
            {"WWW-Authenticate": "Bearer"},
        )

    def _may_pass(self, request: Request) -> bool:
        assert self._token is not None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _is_same(given.strip(), self._token):
            return True
        return _is_same(request.cookies.get(self._cookie, ""), self._proof)


def _name_of(host: str) -> str:
    """Returns the name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode(errors="replace"))


def _plain(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    import json

    return Response(json.dumps({"error": why}), status, headers, "application/json")
