"""The ZIP container of a `.pt` file, mapped into memory and never unpacked.

A storage is a run of bytes inside the file, so an array is a view of the map and reading a
checkpoint costs the pages that are later touched. That only holds for entries that are stored
rather than compressed, which is also what makes ZIP bombs impossible: nothing is ever inflated.
"""

import zipfile
import zlib
from collections import Counter
from typing import BinaryIO, cast

import numpy as np

from clip_jax.errors import CheckpointError

# What may be spent on describing the tensors: a pickle, or the header of a safetensors file. The
# official files need about 100 KB. Every byte can become an object of some 60 bytes, so this keeps
# a hostile file to about a gigabyte and well under a minute.
MAX_INDEX_BYTES = 16 << 20
# What a ZIP archive's table of contents may take. Every entry becomes an object of some 600 bytes;
# 60,000 of them take a second. The official files have a table of about 100 KB.
MAX_CONTENTS_BYTES = 4 << 20

_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1


def shown(text: str, limit: int = 120) -> str:
    """Text from an untrusted file, made fit for one line of an error message."""
    text = text[:limit] + "..." if len(text) > limit else text
    return text if text.isprintable() else ascii(text)


class _Contents:
    """A file in which a table of contents is looked up, without reading one of any size.

    How long the table is, and where it begins, is said in several places: only `zipfile` knows
    which of them it goes by.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        limit = MAX_CONTENTS_BYTES + 1
        found = self._file.read(limit if size < 0 else min(size, limit))
        if len(found) > MAX_CONTENTS_BYTES:
            raise CheckpointError(
                f"has a table of contents of more than {MAX_CONTENTS_BYTES:,} bytes, expected some "
                f"100,000 of a checkpoint: check that this is the right file"
            )
        return found


class Archive:
    """The entries of one checkpoint archive, by their names below its single top folder.

    Everything that `zipfile` trusts and a memory map can't is checked on opening: names, flags,
    and that each entry lies inside the file and apart from the others.

    Raises:
      CheckpointError: not a whole ZIP, or not laid out as PyTorch lays out checkpoints.
    """

    def __init__(self, file: BinaryIO, data: np.memmap):
        self.data = data
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            # Opening reads the central directory and no entry.
            with zipfile.ZipFile(cast(BinaryIO, _Contents(file))) as archive:
                infos = archive.infolist()
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # zipfile answers bad bytes with a dozen kinds of exception
            raise CheckpointError(
                f"begins like a ZIP archive but its table of contents, which comes last, can't be "
                f"read ({shown(str(error))}), expected a complete file: it was probably cut short "
                f"or damaged, so download or copy it again"
            ) from None
        self._check_names(infos)
        top = infos[0].orig_filename.partition("/")[0] + "/"
        self._crcs = {info.orig_filename.removeprefix(top): info.CRC for info in infos}
        # Whoever re-zipped a folder left entries for the folders too. They hold nothing.
        for info in (info for info in infos if not info.orig_filename.endswith("/")):
            name = info.orig_filename.removeprefix(top)
            if name in ("data.pkl", "byteorder") or name.startswith("data/"):
                self._check_stored(info)
            self._spans[name] = self._span(info)
        self._check_apart()
        if "data.pkl" not in self:
            raise CheckpointError(
                f"is a ZIP archive without {shown(top)}data.pkl, expected a TorchScript archive or "
                f"a file written by torch.save: check that this is the right file"
            )
        if "byteorder" in self and (order := self.read("byteorder", 16)) != b"little":
            raise CheckpointError(
                f"has byte order {shown(repr(order))}, expected b'little': load it in "
                f"PyTorch on a little-endian machine (x86 or ARM) and torch.save it again there"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._spans

    def span(self, name: str) -> tuple[int, int]:
        """Where an entry's bytes lie in the file: (start, size)."""
        return self._spans[name]

    def read(self, name: str, limit: int) -> bytes:
        """A copy of a small entry's bytes; refused, unread, where it has more than `limit`."""
        start, size = self.span(name)
        if size > limit:
            raise CheckpointError(
                f"entry {shown(name)} has {size:,} bytes, expected at most {limit:,}: this is no "
                f"ordinary checkpoint, and reading it could exhaust the memory"
            )
        found = self.data[start : start + size].tobytes()
        # PyTorch can be told to leave checksums out (set_crc32_options); it then writes zeros.
        if (crc := self._crcs[name]) and zlib.crc32(found) != crc:
            raise CheckpointError(
                f"entry {shown(name)} has checksum {zlib.crc32(found):08x}, expected {crc:08x}: "
                f"the file is damaged, download or copy it again"
            )
        return found

    def _check_names(self, infos: list[zipfile.ZipInfo]) -> None:
        names = [info.orig_filename for info in infos]
        tops = sorted({name.partition("/")[0] for name in names})
        if len(tops) != 1 or any("/" not in name for name in names):
            raise CheckpointError(
                f"is a ZIP archive with {len(tops)} top-level entries "
                f"({shown(', '.join(tops[:5])) or 'none'}), expected one folder around everything: "
                f"this is not a PyTorch checkpoint, check that it is the right file"
            )
        # Readers disagree on which of two entries with one name counts, so a check of one says
        # nothing about the other.
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise CheckpointError(
                f"has duplicate entries ({shown(', '.join(twice[:5]))}), expected each name once: "
                f"the file was tampered with or damaged, get it from its source again"
            )

    def _check_stored(self, info: zipfile.ZipInfo) -> None:
        what = None
        if info.flag_bits & _ENCRYPTED:
            what = "is encrypted"
        elif info.compress_type != zipfile.ZIP_STORED:
            what = f"is compressed (method {info.compress_type}, {info.file_size:,} bytes unpacked)"
        elif info.compress_size != info.file_size:
            what = f"claims {info.file_size:,} bytes but stores {info.compress_size:,}"
        if what:
            raise CheckpointError(
                f"entry {shown(info.orig_filename)} {what}, expected it stored as PyTorch does it: "
                f"repack the file with `zip -0`, or save it again with torch.save"
            )

    def _span(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        # The local header repeats the name and has padding of its own, so where the bytes start is
        # only written there.
        header = info.header_offset
        fixed = self.data[header : header + _LOCAL_HEADER_BYTES].tobytes() if header >= 0 else b""
        name_size = int.from_bytes(fixed[26:28], "little")
        name_end = header + _LOCAL_HEADER_BYTES + name_size
        start = name_end + int.from_bytes(fixed[28:30], "little")
        local_name = self.data[header + _LOCAL_HEADER_BYTES : name_end].tobytes()
        central_name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        if (
            not fixed.startswith(b"PK\x03\x04")
            or local_name != central_name
            or int.from_bytes(fixed[8:10], "little") != info.compress_type
            or start + info.compress_size > len(self.data)
        ):
            raise CheckpointError(
                f"entry {shown(info.orig_filename)} (offset {header:,}, {info.compress_size:,} "
                f"bytes) is not where the table of contents says, in a file of {len(self.data):,} "
                f"bytes: it is damaged, download or copy it again"
            )
        return start, info.compress_size

    def _check_apart(self) -> None:
        end, last = 0, ""
        for name, (start, size) in sorted(self._spans.items(), key=lambda item: item[1]):
            # Between two entries' bytes there is at least the second one's local header.
            if last and start < end + _LOCAL_HEADER_BYTES:
                raise CheckpointError(
                    f"entries {shown(last)} and {shown(name)} overlap, expected them apart: the "
                    f"file was tampered with or damaged, get it from its source again"
                )
            end, last = start + size, name
