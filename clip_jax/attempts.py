"""What a store's or a server's refusal means: whether to try again, and whose fault it is."""

import errno
import socket
import time
from collections.abc import Callable
from typing import Any

from clip_jax.errors import Refused, Unreachable, causes, exhausted

# Seconds between tries: enough for a server that restarts or asks for patience.
WAITS = (1.0, 4.0)

# Answers of the 400s after which the same question may be answered otherwise.
_BUSY = {408, 425, 429}
# What the system says where it is the name that is wrong.
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
    """What a call of a driver returns, after up to three tries.

    Drivers raise errors of any kind. Here they become `OSError`s that name the address.

    Raises:
        FileNotFoundError: there is nothing at the address.
        PermissionError: it may not be read or written.
        Refused: it was refused for another reason that lasts.
        Exhausted: the machine has run out of something.
        Unreachable: three tries failed in ways that may pass.
    """
    for wait in (*WAITS, None):
        try:
            return act()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such file or folder", address) from None
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"no permission ({error})", address) from None
        except Unreachable:
            raise
        except Exception as error:
            if out := exhausted(error):
                raise out from error
            said = f"{type(error).__name__}: {error}"
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


def _lasts(error: BaseException) -> bool:
    """Whether the same call would fail in the same way."""
    # A malformed address, a certificate, a missing driver; aiohttp's and ftplib's own.
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
    """The status of an HTTP answer, wherever a driver keeps it."""
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
    """Whether nothing came back: no status, no refused connection."""
    return not any(
        _status(cause) is not None or isinstance(cause, ConnectionError) for cause in causes(error)
    )
