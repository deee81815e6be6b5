"""Retries of remote calls: which errors may pass, and which are the machine's fault."""

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from clip_jax.errors import Refused, Unreachable, causes, exhausted

# Seconds between tries: enough for a server that restarts or asks for patience.
WAITS = (1.0, 4.0)

# 4xx statuses that may pass.
_BUSY = {408, 425, 429}
# Errors of the operating system that concern the file's name or its permissions.
_NAMES = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
}


def tried(address: str, act: Callable[[], Any]) -> Any:
    """Calls a driver, up to three times, and returns its result.

    Drivers raise errors of any kind. Here they become `OSError`s that name the address.

    Raises:
        FileNotFoundError: there is nothing at the address.
        PermissionError: reading or writing is not permitted.
        Refused: another permanent error.
        Exhausted: the machine has run out of a resource.
        Unreachable: three tries failed with temporary errors.
    """
    for wait in (*WAITS, None):
        try:
            return act()
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"no permission ({error})", address) from None
        except Unreachable:
            raise
        except Exception as raised:
            error = _underlying(raised)
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(errno.ENOENT, "no such file or folder", address) from None
            if out := exhausted(error):
                raise out from error
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"  # in one line
            if _lasts(error):
                raise Refused(f"{address}: {said}") from error
            if wait is None:
                unreachable = Unreachable(
                    f"{address} can't be reached: {said}. Check the address, the credentials and "
                    "the network, and run the same command again."
                )
                unreachable.is_silent = _is_silent(error)
                raise unreachable from error
            time.sleep(wait)


def _underlying(error: Exception) -> Exception:
    """Returns the error of the network that a driver has reported as a missing file.

    Fsspec's driver of HTTP does so with all errors.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    status = _status(cause)
    if status is not None:
        return error if status in (404, 410) else cause
    is_aiohttp = any(kind.__name__ == "ClientError" for kind in type(cause).__mro__)
    is_network = isinstance(cause, ConnectionError | TimeoutError) or is_aiohttp
    return cause if is_network else error


def _lasts(error: BaseException) -> bool:
    """Whether an error is permanent: the same call would fail again."""
    # A malformed address, a bad certificate, a missing driver; then aiohttp's and ftplib's own.
    if isinstance(error, ValueError | TypeError | NotImplementedError | ImportError):
        return True
    if type(error).__name__ in ("TooManyRedirects", "error_perm"):
        return True
    for cause in causes(error):
        status = _status(cause)
        if status is not None:
            return 400 <= status < 500 and status not in _BUSY
        if isinstance(cause, socket.gaierror):
            return cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        if isinstance(cause, OSError) and cause.errno in _NAMES:
            return True
    return False


def _status(error: BaseException) -> int | None:
    """Returns the status of an HTTP response, wherever a driver keeps it."""
    if any(kind.__name__ == "PayloadEncodingError" for kind in type(error).__mro__):
        return None  # aiohttp's for a body that is cut off; it calls that a status of 400
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None)
    for name in ("status", "status_code", "code"):
        found = getattr(error, name, None) if found is None else found
    try:
        return int(found) if found is not None and 100 <= int(found) < 600 else None
    except (TypeError, ValueError):
        return None


def _is_silent(error: BaseException) -> bool:
    """Whether there was no answer: neither a status nor a refused connection."""
    return not any(
        _status(cause) is not None or isinstance(cause, ConnectionError) for cause in causes(error)
    )
