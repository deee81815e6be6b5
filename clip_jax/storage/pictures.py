"""The limit on the size of a picture's file."""

import errno
import os

# No picture is larger; other files named in a table would fill the memory.
MOST_OF_A_PICTURE = 1 << 30


def check_picture_size(address: str | os.PathLike[str], size: int) -> None:
    """Raises OSError if a picture's file is too large."""
    if size > MOST_OF_A_PICTURE:
        most = f"{MOST_OF_A_PICTURE:,}"
        what = f"has {size:,} bytes, more than the {most} that a picture may have"
        raise OSError(errno.EFBIG, what, os.fspath(address))
