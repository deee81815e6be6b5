"""Pictures by their addresses, of which some are gone, and some servers too."""

import dataclasses
import threading
import time
import urllib.parse

from clip_jax.storage import (
    Exhausted,
    Refused,
    Storage,
    Unreachable,
    check_picture_size,
    is_remote,
    plain,
    storage,
)

# After so many rows in a row that it gave no answer to, a host is asked again only now and then.
GIVEN_UP = 3
# Seconds until then.
PAUSE = 60.0
# So many rows in a row without an answer from any host at all are the network's fault.
NO_ANSWER = 64


def read_address(address: str, store: Storage | None = None) -> bytes:
    """The bytes of a picture's file.

    What has no answer is asked for three times. The hosts that never answer are remembered, so that
    a job doesn't wait for each of their pictures.

    Args:
        address: a path, or whatever fsspec knows.
        store: in which the address lies, and all of the input. Then the job stops where nothing of
            it can be read from the beginning.

    Raises:
        OSError: it can't be read. Where it was tried several times the message says so, and trying
            again another day may help.
        ValueError: it is malformed, or of a kind that fsspec doesn't know.
        Unreachable: nothing can be read any more, whatever the address.
    """
    if not is_remote(address := plain(address)):
        disk = store or storage(address)
        check_picture_size(address, disk.size(address))
        return disk.read(address)
    host = _host(address)
    _HOSTS.check(host)
    try:
        data = (store or storage(address)).read(address)
    except Exhausted:
        raise
    except Unreachable as error:
        if store is not None and error.is_silent and not _HOSTS.has_answered(host):
            raise
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {cause}"
        _HOSTS.gave_up(host, reason, is_silent=error.is_silent)
        raise Refused(f"gave up after 3 tries: {address}: {reason}") from None
    except ModuleNotFoundError as error:
        _HOSTS.gave_up(host, str(error), is_silent=True)
        raise Refused(str(error)) from None
    except (OSError, ValueError):
        _HOSTS.answered(host)
        raise
    _HOSTS.answered(host)
    check_picture_size(address, len(data))
    return data


def forget(store: str) -> None:
    """Begins anew with a store: that it answered an earlier job says nothing for this one."""
    _HOSTS.forget(_host(store))


@dataclasses.dataclass
class _Host:
    """How a host has answered lately.

    Attributes:
        failures: rows in a row for which several tries have failed.
        pause: until when it isn't asked, in seconds of the monotonic clock.
        reason: why the last one failed.
    """

    failures: int = 0
    pause: float = 0.0
    reason: str = ""


class _Hosts:
    """All hosts that were asked by this process."""

    def __init__(self):
        self._hosts: dict[str, _Host] = {}
        self._silent = 0  # rows in a row without an answer from any host
        self._alive: set[str] = set()
        self._lock = threading.Lock()

    def check(self, host: str) -> None:
        """Raises OSError for a host that is being left alone."""
        with self._lock:
            known = self._hosts.get(host)
            # Where nobody answers it may be the network, which is given its time.
            if known is None or self._silent or time.monotonic() >= known.pause:
                return
            raise Refused(
                f"gave up on {host} after 3 tries for each of {GIVEN_UP} rows: {known.reason}"
            )

    def answered(self, host: str) -> None:
        """Notes that a host is there, whatever it said."""
        with self._lock:
            self._silent = 0
            self._hosts.pop(host, None)
            if len(self._alive) < 1000:
                self._alive.add(host)

    def forget(self, host: str) -> None:
        """Makes a host one that was never asked."""
        with self._lock:
            self._alive.discard(host)
            self._hosts.pop(host, None)

    def has_answered(self, host: str) -> bool:
        """Whether a host has ever answered, as far as is remembered."""
        return host in self._alive

    def gave_up(self, host: str, reason: str, *, is_silent: bool) -> None:
        """Notes that a row could not be read, after several tries.

        Raises:
            Unreachable: that is the network's fault.
        """
        with self._lock:
            known = self._hosts.setdefault(host, _Host())
            known.failures, known.reason = known.failures + 1, reason
            if known.failures >= GIVEN_UP:
                known.pause = time.monotonic() + PAUSE
            if not is_silent:
                self._silent = 0
                return
            self._silent += 1
            if self._silent < NO_ANSWER:
                return
            self._silent = 0
        raise Unreachable(
            f"{NO_ANSWER} pictures in a row gave no answer, the last one at {host}: {reason}. "
            "Check the network, and run the same command again; or take their rows out of the input"
        )


_HOSTS = _Hosts()


def _host(address: str) -> str:
    """What answers for an address: a web server, or a bucket."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:  # malformed, which shows as it is read
        return address
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
