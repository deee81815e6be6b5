"""Progressive JPEG files in scans without end.

Each scan of such a file improves all of the picture, and one that changes nothing takes a hundred
bytes: a file of ten megabytes can keep a decoder busy for minutes.
"""

import re

from PIL import Image

# Encoders write about ten; what improves every coefficient bit by bit has some hundreds.
MOST_SCANS = 500

# A marker in the compressed data, where a byte of 255 is followed by 0, and restarts are no more
# than a bookmark.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SCAN, _END = b"\xda", b"\xd9"


def check_scans(image: Image.Image) -> None:
    """Raises DecompressionBombError for an opened JPEG file of more than `MOST_SCANS` scans."""
    file = getattr(image, "fp", None)
    if not image.info.get("progressive") or file is None:
        return
    begin = file.tell()  # in the first scan, behind its header
    data = file.read()
    file.seek(begin)
    scans, position = 1, 0
    while (found := _MARKER.search(data, position)) and found[1] != _END:
        scans += found[1] == _SCAN
        if scans > MOST_SCANS:
            raise Image.DecompressionBombError(
                f"has more than {MOST_SCANS} scans, expected about ten of a progressive JPEG: it "
                "would take too long"
            )
        position = _behind(data, found.end())


def _behind(data: bytes, position: int) -> int:
    """Returns where a segment ends whose length stands at this position."""
    return position + max(int.from_bytes(data[position : position + 2]), 2)
