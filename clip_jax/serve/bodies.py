"""The bodies of requests: pictures, of limited size, within a limited time."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from clip_jax.serve.refusals import Refusal

# Bytes of a picture; bytes of all that are being received at one time.
MOST = 20 << 20
MOST_TOGETHER = 256 << 20
# Seconds in which a picture must be there.
SECONDS = 60.0


class Bodies:
    """Receives the bodies of several requests at a time."""

    def __init__(self):
        """Has received nothing yet."""
        self._together = 0

    async def read(self, request: Request) -> bytes:
        """Returns the body of a request.

        Raises:
            Refusal: it is too large, which is said before it is read where its length is known;
                too many come at once; or it takes too long.
        """
        told = request.headers.get("content-length", "")
        if told.isascii() and told.isdecimal() and int(told[:20]) > MOST:
            raise _too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(SECONDS):
                async for part in request.stream():
                    size += len(part)
                    self._together += len(part)
                    parts.append(part)
                    if size > MOST:
                        raise _too_large()
                    if self._together > MOST_TOGETHER:
                        raise Refusal(503, "too many pictures at once: try again in a second")
        except TimeoutError:
            raise Refusal(408, f"the picture did not come within {SECONDS:.0f} seconds") from None
        except ClientDisconnect:
            raise Refusal(400, "the connection ended before the picture was there") from None
        finally:
            self._together -= size
        return b"".join(parts)


def _too_large() -> Refusal:
    return Refusal(413, f"a picture may have {MOST >> 20} MB: send a smaller one")
