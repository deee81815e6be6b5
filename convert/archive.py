"""The ZIP container of a `.pt` file, memory-mapped and never unpacked.

A storage is a range of bytes in the file, so an array is a view of the map, and only the pages
that are used later are read. This requires entries that are stored rather than compressed, which
also makes ZIP bombs impossible: nothing is ever decompressed.
"""

import zipfile
import zlib
from collections import Counter
from typing import BinaryIO, cast

import numpy as np

from clip_jax.errors import CheckpointError

# The largest description of the tensors: a pickle, or the header of a safetensors file. The
# official files need about 100 KB. Every byte can become an object of about 60 bytes, so this
# limits a hostile file to about a gigabyte and well under a minute.
MAX_INDEX_BYTES = 16 << 20
# The largest table of contents of a ZIP archive. Every entry becomes an object of about 600 bytes;
# 60,000 of them take a second. The official files have a table of about 100 KB.
MAX_CONTENTS_BYTES = 4 << 20

_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1


def shown(text: str, limit: int = 120) -> str:
    """Makes text from an untrusted file fit for one line of an error message."""
    text = text[:limit] + "..." if len(text) > limit else text
    return text if text.isprintable() else ascii(text)


class Contents:
    """A file for `zipfile` that refuses to read a table of contents beyond the limit.

    A ZIP archive gives the size and offset of the table in several places, and only `zipfile` knows
    which of them it uses.
    """

    def __init__(self, file: BinaryIO):
        """Takes the file, which the caller closes."""
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Reads as a file does; raises CheckpointError beyond the limit."""
        limit = MAX_CONTENTS_BYTES + 1
        found = self._file.read(limit if size < 0 else min(size, limit))
        if len(found) > MAX_CONTENTS_BYTES:
            raise CheckpointError(
                f"has a table of contents of more than {MAX_CONTENTS_BYTES:,} bytes, expected some "
                f"100,000 of a checkpoint: check that this is the right file"
            )
        return found


class Archive:
    """The entries of a checkpoint archive, by their names below its single top folder.

    Opening checks all that `zipfile` trusts but a memory map can't: names, flags, and that entries
    lie inside the file and don't overlap.

    Raises:
      CheckpointError: it is not a complete ZIP archive, or not laid out as PyTorch's checkpoints.
    """

    def __init__(self, file: BinaryIO, data: np.memmap):
        self.data = data
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            # This reads the central directory only.
            with zipfile.ZipFile(cast(BinaryIO, Contents(file))) as archive:
                infos = archive.infolist()
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # zipfile raises a dozen kinds of errors for bad bytes
            raise CheckpointError(
                f"begins like a ZIP archive but its table of contents, which comes last, can't be "
                f"read ({shown(str(error))}), expected a complete file: it was probably cut short "
                f"or damaged, so download or copy it again"
            ) from None
        _check_numpy(infos)
        self._check_names(infos)
        top = infos[0].orig_filename.partition("/")[0] + "/"
        self._crcs = {info.orig_filename.removeprefix(top): info.CRC for info in infos}
        self._methods = {info.orig_filename.removeprefix(top): info.compress_type for info in infos}
        # A re-zipped checkpoint has entries for its folders too, which are empty.
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
        """Returns (start, size) of an entry's bytes in the file."""
        return self._spans[name]

    def read(self, name: str, limit: int) -> bytes:
        """Returns a copy of an entry's bytes; refuses an entry of more than `limit` bytes."""
        start, size = self.span(name)
        if size > limit:
            raise CheckpointError(
                f"entry {shown(name)} has {size:,} bytes, expected at most {limit:,}: this is no "
                f"ordinary checkpoint, and reading it could exhaust the memory"
            )
        found = self.data[start : start + size].tobytes()
        # With set_crc32_options PyTorch can omit checksums; it then writes zeros.
        if (crc := self._crcs[name]) and zlib.crc32(found) != crc:
            raise CheckpointError(
                f"entry {shown(name)} has checksum {zlib.crc32(found):08x}, expected {crc:08x}: "
                f"the file is damaged, download or copy it again"
            )
        return found

    def unpacked(self, name: str, limit: int) -> bytes:
        """Returns an entry's bytes, which may be compressed, but not to more than `limit`."""
        start, size = self.span(name)
        packed, method = self.data[start : start + size], self._methods[name]
        if method == zipfile.ZIP_STORED:
            found, is_whole = packed[: limit + 1].tobytes(), True
        elif method == zipfile.ZIP_DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                found = inflate.decompress(packed.tobytes(), limit + 1)
            except zlib.error:
                found = b""
            is_whole = inflate.eof
        else:
            found, is_whole = b"", False
        if len(found) > limit or not is_whole:
            raise CheckpointError(
                f"entry {shown(name)} can't be unpacked to at most {limit:,} bytes, expected a few "
                f"of a checkpoint's code: the file is damaged, download or copy it again"
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
        # Readers disagree on which of two entries with the same name counts, so checking one
        # wouldn't be enough.
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
        # The local header repeats the name and has its own padding, so only it gives the start of
        # the bytes.
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
            # Between the bytes of two entries there is at least the second one's local header.
            if last and start < end + _LOCAL_HEADER_BYTES:
                raise CheckpointError(
                    f"entries {shown(last)} and {shown(name)} overlap, expected them apart: the "
                    f"file was tampered with or damaged, get it from its source again"
                )
            end, last = start + size, name


def _check_numpy(infos: list[zipfile.ZipInfo]) -> None:
    """Raises CheckpointError for NumPy's archives, in which big_vision's models are."""
    names = [info.orig_filename for info in infos]
    if names and all(name.endswith(".npy") for name in names):
        theirs = ", perhaps big_vision's SigLIP" if any("img/" in name for name in names) else ""
        raise CheckpointError(
            f"is an archive of NumPy (.npz){theirs}, which is not supported yet, expected a .pt or "
            f".safetensors file: take the model in the form of PyTorch or of transformers"
        )
