"""The pictures of rows, as thumbnails and as they are; and pictures that clients send."""

import hashlib
import io

from PIL import Image, ImageOps

from clip_jax.preprocess import Preprocess, decode_image, known_formats
from clip_jax.serve.cache import Cache
from clip_jax.serve.refusals import Refusal, bad
from clip_jax.serve.searcher import Embed
from clip_jax.sources import read_picture
from clip_jax.storage import is_remote
from clip_jax.thumbnails import is_near, thumbnail

# Bytes of the thumbnails that are kept.
THUMBNAILS = 128 << 20
# What browsers show; others are downloaded instead.
SHOWN = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "ICO")


class Pictures:
    """Reads the pictures of rows, by the paths that the job has noted."""

    def __init__(self, image_column: str, source: str | None, fetch: bool):
        """Reads nothing yet.

        Args:
            image_column: the column of pictures in Parquet files.
            source: the input of the job.
            fetch: whether to fetch pictures that lie elsewhere, at addresses in its rows.
        """
        self._image_column, self._source, self._fetch = image_column, source, fetch
        self._thumbnails: Cache[bytes] = Cache(THUMBNAILS, len)

    def thumbnail(self, number: int, path: str | None) -> bytes:
        """Returns the thumbnail of a row's picture, a JPEG.

        Raises:
            Refusal: there is none.
        """
        found = self._thumbnails.get(number)
        if found is None:
            try:
                found = thumbnail(self._read(path))
            except ValueError as error:
                raise Refusal(404, f"the picture can't be shown: {error}") from None
            self._thumbnails.put(number, found)
        return found

    def original(self, path: str | None) -> tuple[bytes, str, bool]:
        """Returns a picture's file, its media type, and whether browsers show it.

        Raises:
            Refusal: there is none, or it is no picture.
        """
        data = self._read(path)
        try:
            with Image.open(io.BytesIO(data), formats=known_formats()) as image:
                format_ = image.format or ""
        except Exception:  # decoders raise errors of any kind
            raise Refusal(404, "the file is no picture any more") from None
        media = Image.MIME.get(format_, "application/octet-stream")
        return data, media, format_ in SHOWN

    def _read(self, path: str | None) -> bytes:
        if not path:
            raise Refusal(404, "the row has no picture")
        if not (self._fetch or is_near(path, self._source)):
            raise Refusal(404, "the picture lies elsewhere, and is fetched only with --fetch")
        try:
            return read_picture(path, self._image_column)
        except (OSError, ValueError):
            place = "at its address" if is_remote(path) else "in its place"
            raise Refusal(404, f"the picture is not there any more, {place}") from None


def sent(data: bytes, preprocess: Preprocess, rotates: bool) -> Embed:
    """Decodes a picture that a client sent.

    Args:
        data: its file.
        preprocess: how it becomes pixels.
        rotates: whether it is rotated as its EXIF data say, as those of the job were.

    Raises:
        Refusal: it is no picture, damaged or unreasonably large.
    """
    if not data:
        raise bad("expected a picture's file as the body of the request. Got nothing")
    try:
        image = decode_image(data, preprocess=preprocess)
        pixels = preprocess.pixels(ImageOps.exif_transpose(image) if rotates else image)
    except ValueError as error:
        raise Refusal(400, f"the picture can't be read: {error}") from None
    return Embed(hashlib.sha256(data).hexdigest()[:32], pixels)
