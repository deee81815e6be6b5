"""Connections of clients that are slow or silent, which cost a socket until they are closed."""

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds in which the head of a request must be there.
HEAD = 20.0


class Connection(H11Protocol):
    """A connection that is closed if the head of its request takes too long.

    Uvicorn itself waits for ever for it, and only limits the pause between two requests.
    """

    _timer: Any = None

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Takes what has come, and waits on if it isn't a whole head."""
        super().data_received(data)
        if self._is_idle():
            if self._timer is None:
                self._wait()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._timer = self.loop.call_later(HEAD, self._end)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _end(self) -> None:
        self._timer = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()
