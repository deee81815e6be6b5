"""Reads pictures by address; servers that don't answer are skipped for a while."""

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

# After this many consecutive rows without an answer, a host is paused.
GIVEN_UP = 3
# Seconds of that pause.
PAUSE = 60.0
# This many consecutive rows without an answer from any host mean that the network is down.
NO_ANSWER = 64


def read_address(address: str, store: Storage | None = None) -> bytes:
    """Reads a picture's file.

    A request without an answer is made three times. Hosts that don't answer are remembered, so
    that a job doesn't wait for each of their pictures.

    Args:
        address: a path, or any address that fsspec knows.
        store: the store of the whole input, if the address lies in it. If it has never answered,
            no answer is an `Unreachable`, which stops the job.

    Raises:
        OSError: the file can't be read. If the message tells of several tries, another one later
            may help.
        ValueError: the address is malformed, or of a kind that fsspec doesn't know.
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
    """Forgets whether a store has answered, as an earlier job's answers may be out of date."""
    _HOSTS.forget(_host(store))


@dataclasses.dataclass
class _Host:
    """The recent failures of a host.

    Attributes:
        failures: consecutive rows for which all tries have failed.
        pause: the end of its pause, in seconds of the monotonic clock.
        reason: why the last one failed.
    """

    failures: int = 0
    pause: float = 0.0
    reason: str = ""


class _Hosts:
    """The hosts that this process has made requests to."""

    def __init__(self):
        self._hosts: dict[str, _Host] = {}
        self._silent = 0  # consecutive rows without an answer from any host
        self._alive: set[str] = set()
        self._lock = threading.Lock()

    def check(self, host: str) -> None:
        """Raises OSError if the host is paused."""
        with self._lock:
            known = self._hosts.get(host)
            # If no host answers, the network may be down for a moment: keep trying.
            if known is None or self._silent or time.monotonic() >= known.pause:
                return
            raise Refused(
                f"gave up on {host} after 3 tries for each of {GIVEN_UP} rows: {known.reason}"
            )

    def answered(self, host: str) -> None:
        """Records that a host has answered, even with an error."""
        with self._lock:
            self._silent = 0
            self._hosts.pop(host, None)
            if len(self._alive) < 1000:
                self._alive.add(host)

    def forget(self, host: str) -> None:
        """Forgets all about a host."""
        with self._lock:
            self._alive.discard(host)
            self._hosts.pop(host, None)

    def has_answered(self, host: str) -> bool:
        """Whether a host is remembered to have answered."""
        return host in self._alive

    def gave_up(self, host: str, reason: str, *, is_silent: bool) -> None:
        """Records that a row could not be read after several tries.

        Raises:
            Unreachable: the network is down.
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
    """Returns the host of an address: a web server, or a bucket."""
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:  # malformed: reading it will raise
        return address
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
