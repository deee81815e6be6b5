"""Serves the page until it is stopped."""

import asyncio
import contextlib
import errno
import functools
import hashlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.config import Activation, NumHeads
from clip_jax.embed.results import finished_job, parts_of
from clip_jax.image_size import ImageSize
from clip_jax.nn import CLIP
from clip_jax.progress import announce, remark
from clip_jax.search import has_index, open_index
from clip_jax.search.exact import check_given, model_of, picture_options
from clip_jax.search.index import Index
from clip_jax.signals import Stop, deferred
from clip_jax.storage import folder
from clip_jax.weights.opened import LoadOptions
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing

# Seconds in which answers under way are still given after a signal.
GRACE = 2
# Seconds between two looks whether there was one.
EVERY = 0.1


def serve(
    out: str | os.PathLike[str],
    model: CLIP | str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    exact: bool = False,
    fetch: bool = False,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing | None = None,
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> None:
    """Serves a page to search an embedding job's output in, until it is stopped.

    The page is told at `http://HOST:PORT/`, on standard output. What it asks for is there for
    programs too: `/api/search`, `/api/similar` and `/healthz`. It shows the rows that were there
    when it was started.

    Args:
        out: the job's folder.
        model: the job's model, as for `clip_jax.search.search`.
        host: the address to listen on. Any but this machine's own needs a token.
        port: the port; 0 for a free one.
        token: what clients have to show: browsers by opening `/?token=...` once, programs by the
            header `Authorization: Bearer ...`.
        exact: whether to compare all rows although there is an index for approximate search.
        fetch: whether to fetch pictures that a table of the input gives as addresses.
        activation: as for `clip_jax.search.search`, and so are the others.
        num_heads: likewise.
        preprocessing: likewise.
        image_size: likewise.
        position_resize: likewise.
        drop_remainder: likewise.

    Raises:
        ValueError: there are no embeddings, or they are of another model; the host needs a token.
        OSError: the port is in use, or the output can't be read.
        ModuleNotFoundError: starlette or uvicorn is missing.

    Warns:
        Incomplete: parts are missing or damaged; the message says how many rows are left out.

    Example:
        >>> serve("embeddings", port=8000)  # doctest: +SKIP
        27 rows at http://127.0.0.1:8000/ (Ctrl-C ends it)
    """
    uvicorn = _uvicorn()
    is_local = _is_local(host)
    if token is not None and not token.strip():
        raise ValueError("token= must not be empty")
    if not is_local and token is None:
        raise ValueError(
            f"host={host} can be reached from other machines: give token=, which clients then have "
            "to show; or host=127.0.0.1"
        )
    options = LoadOptions(
        activation=activation,
        num_heads=num_heads,
        preprocessing=preprocessing or "openai",
        image_size=image_size,
        position_resize=position_resize,
        drop_remainder=drop_remainder,
    )
    with contextlib.closing(_listening(host, port)) as listener:
        announce("loading the model and the columns")
        application, searcher = _application(
            folder(out),
            model,
            options,
            is_local=is_local,
            token=token,
            exact=exact,
            fetch=fetch,
        )
        where = _address(listener, host)
        shown = where + (
            f"?{urllib.parse.urlencode({'token': token})}" if token is not None else ""
        )
        print(f"{searcher.index.num_rows:,} rows at {shown} (Ctrl-C ends it)", flush=True)
        with deferred(grace=GRACE + 4) as stop_asked:
            _run(uvicorn.Server(_settings(application.app)), listener, searcher, stop_asked)


def _application(
    out: str, model: Any, options: LoadOptions, *, exact: bool, fetch: bool, **guard: Any
) -> tuple[Any, Any]:
    from clip_jax.serve.app import Application
    from clip_jax.serve.columns import Columns
    from clip_jax.serve.pictures import Pictures, sent
    from clip_jax.serve.searcher import Searcher

    job = finished_job(out)
    opened = model_of(out, job, model, options)
    for own in ("tokenizer", "preprocessing"):
        check_given(out, job, model, own)
    index = Index(out, job)
    for warning in index.gaps.warnings(out, parts_of(out, job).table):
        warnings.warn(warning, stacklevel=3)
    noted = job["identity"].get("columns")
    columns = Columns(index, noted[3:] if isinstance(noted, list) else [])
    approximate = None if exact else _approximate(out)
    searcher = Searcher(opened, index, columns, approximate)
    if not searcher.can_read_texts:
        remark("the model's tokenizer isn't at hand: pictures can be searched for, texts can't")
    parts = repr((job["fingerprint"], index.parts()))
    facts = {
        "name": os.path.basename(out.rstrip("/")) or out,
        "folder": out,
        "source": job.get("source"),
        "model": str(model if isinstance(model, str | os.PathLike) else job["model"] or ""),
        "rows": index.num_rows,
        "version": hashlib.sha256(parts.encode()).hexdigest()[:12],
        "left_out": index.gaps.rows,
        "reads_texts": searcher.can_read_texts,
    }
    pictures = Pictures(job["image_column"], job.get("source"), fetch)
    preprocess = picture_options(job).applied_to(opened.preprocess)
    rotates = bool(job["identity"].get("exif_transpose"))
    reader = functools.partial(sent, preprocess=preprocess, rotates=rotates)
    return Application(searcher, pictures, reader, facts, **guard), searcher


def _approximate(out: str) -> Any:
    """Returns the index for approximate search, if there is one that can be used."""
    if not has_index(out):
        return None
    try:
        return open_index(out)
    except (ValueError, ModuleNotFoundError) as error:
        remark(f"all rows are compared, as the index can't be used: {error}")
        return None


def _run(
    server: Any, listener: socket.socket, searcher: Any, stop_asked: Callable[[], Stop | None]
) -> None:
    """Runs a server until it is stopped, or until its programs can't be compiled."""
    failed: list[BaseException] = []

    def prepare() -> None:
        try:
            searcher.prepare()
        except BaseException as error:
            failed.append(error)

    @contextlib.contextmanager
    def unhandled() -> Iterator[None]:  # signals are ours
        yield

    async def watch() -> None:
        while not (stop_asked() or failed):
            await asyncio.sleep(EVERY)
        # It would show where it was in the answers that it breaks off.
        logging.getLogger("uvicorn.error").disabled = True
        server.should_exit = True

    async def run() -> None:
        watching = asyncio.create_task(watch())
        threading.Thread(target=prepare, name="clip-jax-prepare", daemon=True).start()
        try:
            await server.serve([listener])
        finally:
            watching.cancel()

    server.capture_signals = unhandled
    asyncio.run(run())
    if failed:
        raise failed[0]


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to a port."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(f"host={host} is no address of this machine: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} of {host} is in use: give another, such as port={port + 1}, or end "
                "what listens there"
            ) from None
        raise OSError(f"can't listen on port {port} of {host}: {error.strerror}") from None
    return listener


def _address(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the page needs starlette and uvicorn ({error}): pip install 'clip-jax-flax[serve]'"
        ) from None
    return uvicorn


def _settings(app: Any) -> Any:
    """Returns how uvicorn serves an application."""
    import uvicorn

    from clip_jax.serve.connections import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,  # addresses may hold the token
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
    )
