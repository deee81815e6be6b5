"""Pictures on a page: thumbnails inside it, each a link to its original."""

import base64
import contextlib
import html
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

from PIL import ImageOps

from clip_jax.channels import covered
from clip_jax.pages import text
from clip_jax.preprocess import decode_image
from clip_jax.sources import read_picture
from clip_jax.sources.records import as_name
from clip_jax.storage import is_remote

# Pixels of a thumbnail's longer side: sharp at a width of 200 on a high-density screen.
SIDE = 400
# Bytes of all thumbnails of a page together.
MOST = 32 << 20


class Thumbnails:
    """The thumbnails of a page."""

    def __init__(self, image_column: str = "image", source: str | None = None, fetch: bool = False):
        """Reads nothing yet.

        Args:
            image_column: the column of pictures in Parquet files.
            source: where the pictures come from. Remote pictures are fetched only if they lie
                within it: anybody may have written other addresses into a table.
            fetch: whether to fetch all remote pictures.
        """
        self._image_column, self._source, self._fetch = image_column, source, fetch
        self._bytes_left = MOST

    def picture(self, path: str | None, alt: str, read: Callable[[], bytes] | None = None) -> str:
        """Returns a picture as HTML, or why it isn't shown.

        Args:
            path: as for `read_picture`; None if there is no picture, or it has no path.
            alt: what it shows, as plain text.
            read: reads a picture that has no path.
        """
        if not path:
            return self._shown(read, alt) if read else ""
        inner = self._inner(path, alt)
        address = address_of(path)
        if address is None:
            return inner
        return f'<a href="{html.escape(address)}" target="_blank" rel="noreferrer">{inner}</a>'

    def _inner(self, path: str, alt: str) -> str:
        if not (self._fetch or is_near(path, self._source)):
            return f'<p class="picture">not fetched: {text(path)}</p>'
        return self._shown(lambda: read_picture(path, self._image_column), alt)

    def _shown(self, read: Callable[[], bytes], alt: str) -> str:
        if self._bytes_left <= 0:
            return '<p class="picture">not shown: the page is full</p>'
        url = self._url(read)
        if url is None:
            return '<p class="picture">not there any more</p>'
        return f'<img class="picture" src="{url}" alt="{html.escape(alt)}">'

    def url(self, path: str) -> str | None:
        """Returns a thumbnail as a data URL; None if the picture can't be read."""
        return self._url(lambda: read_picture(path, self._image_column))

    def _url(self, read: Callable[[], bytes]) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            url = "data:image/jpeg;base64," + base64.b64encode(thumbnail(read())).decode()
            self._bytes_left -= len(url)
            return url
        return None


def thumbnail(data: bytes) -> bytes:
    """Returns a picture's thumbnail as a JPEG, with what is transparent on white.

    Args:
        data: the bytes of the picture's file.

    Raises:
        ValueError: it is no picture, damaged or unreasonably large.
        OSError: the machine has run out of memory.
    """
    image = decode_image(data, reduced_to=(2 * SIDE, 2 * SIDE))
    image.thumbnail((SIDE, SIDE))
    image = ImageOps.exif_transpose(image)  # upright, as browsers show the original
    file = io.BytesIO()
    covered(image, "white").convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def is_near(path: str, source: str | None) -> bool:
    """Whether a picture is on this machine, or lies within a job's input.

    Others are not fetched unasked: anybody may have written other addresses into a table.
    """
    return not is_remote(path) or (source is not None and _is_within(path, source))


def address_of(path: str) -> str | None:
    """Returns what a browser opens; None for members of archives and for object stores."""
    if is_remote(path):
        return path if re.match("https?://", path) else None
    for name in (as_name(path), path):
        if os.path.isfile(name):
            return Path(os.path.abspath(name)).as_uri()
    return None


def _is_within(path: str, source: str) -> bool:
    """Whether a picture lies in a job's input itself, rather than at an address that it names."""
    head = re.split(r"[*?\[{]", source, maxsplit=1)[0]
    if head == source:
        return path.startswith(source.rstrip("/") + "/")
    return path.startswith(head) and re.fullmatch(r".+\.(tar|parquet)/.+", path) is not None
