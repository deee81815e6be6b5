"""Tells texts in UTF-16 and UTF-32, as some programs save them, from those in UTF-8.

Their line ends and separators are other bytes. In UTF-8 they would be taken apart in the middle of
characters, and English among them would pass, with a NUL behind each letter.
"""

# The byte order mark that some programs write in front of UTF-8.
BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


def check_utf_8(text: bytes) -> None:
    """Checks that a text's beginning isn't that of UTF-16 or UTF-32.

    Raises:
        ValueError: it is; where no byte order mark says so, because its first character has a NUL.
    """
    if text.startswith(_WIDE) or b"\0" in text[:2]:
        raise ValueError("it is UTF-16 or UTF-32, expected UTF-8: save it as UTF-8")
