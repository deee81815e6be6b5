"""The encoding of a part as a Parquet file with a checksum.

The schema's metadata names the job and the rows. The footer's gives the end of the content, its
CRC, and the offsets of the embeddings, which are neither compressed nor encoded, so that they can
be mapped. It also holds the CRC of the footer itself, with zeros in place of these eight digits.
The digests of the pictures follow the columns, where Parquet readers don't look: in the footer they
would have to be read at every start.
"""

import dataclasses
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.embed.footer import ABOUT as ABOUT
from clip_jax.embed.footer import FILE as FILE
from clip_jax.embed.footer import (
    SEAL,
    UNSEALED,
    Footer,
    footer_length,
    is_damage,
    read_footer,
    sealed,
)

# Each row group must fit in one page: pyarrow begins a new page after 20,000 rows.
ROW_GROUP = 8192
# The columns of embeddings.
COLUMNS = ("embedding", "text_embedding")


@dataclasses.dataclass(frozen=True)
class Contents:
    """The content of a valid file.

    Attributes:
        footer: its footer.
        data: the bytes of the file, or of its end.
    """

    footer: Footer
    data: bytes

    @property
    def pictures(self) -> np.ndarray | None:
        """(rows,) uint64, the digests of the pictures; needs the whole file in `data`."""
        if self.footer.digests is None:
            return None
        return np.frombuffer(self.data, "<u8", self.footer.rows, self.footer.digests)

    def table(self) -> tuple[Any, dict[str, np.ndarray]]:
        """Returns the columns as an Arrow table without metadata, and the embeddings."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table, embeddings = pq.read_table(pa.BufferReader(self.data)), {}
        for column in [name for name in table.column_names if name in COLUMNS]:
            embeddings[column] = matrix(table.column(column))
            table = table.drop_columns(column)
        return table.replace_schema_metadata(None), embeddings


def contents(data: bytes, is_whole: bool) -> Contents | None:
    """Parses a file; returns None if it is damaged.

    Args:
        data: the bytes of the file, or of its end from the footer on.
        is_whole: whether it is the whole file; only then the content is checked.
    """
    footer = read_footer(data)
    if footer is None:
        return None
    found = Contents(footer, data)
    if not is_whole:
        return found
    if zlib.crc32(memoryview(data)[: footer.end]) != footer.crc32:
        return None
    if not footer.is_sealed:  # of an earlier version: what its footer says shows by decoding only
        try:
            found.table()
            _ = found.pictures
        except Exception as error:
            if not is_damage(error):
                raise
            return None
    return found


def encoded(
    table: Any,
    embeddings: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    pictures: np.ndarray | None = None,
) -> bytes:
    """Encodes a table as a Parquet file, with the embeddings after its first column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    compressed = table.column_names
    for position, (name, matrix) in enumerate(embeddings.items(), start=1):
        item = pa.field("item", pa.from_numpy_dtype(matrix.dtype), nullable=False)
        values = pa.array(matrix.reshape(-1), item.type)
        column = pa.FixedSizeListArray.from_arrays(values, type=pa.list_(item, matrix.shape[1]))
        table = table.add_column(position, pa.field(name, column.type, nullable=False), column)
    table = table.replace_schema_metadata({ABOUT: json.dumps(about, sort_keys=True)})
    sink = io.BytesIO()
    writer = pq.ParquetWriter(
        sink,
        table.schema,
        compression=dict.fromkeys(compressed, "zstd"),  # pyright: ignore[reportArgumentType]
        use_dictionary=False,
        write_statistics=compressed,
        data_page_size=1 << 30,
    )
    writer.write_table(table, row_group_size=ROW_GROUP)
    begin = sink.tell()
    if pictures is not None:
        sink.write(pictures.astype("<u8").tobytes())
    content = sink.getvalue()
    file: dict[str, Any] = {
        "end": len(content),
        "crc32": zlib.crc32(content),
        "groups": ROW_GROUP,
        "at": {},
        SEAL: UNSEALED,
    }
    for name, matrix in embeddings.items():
        groups = [matrix[i : i + ROW_GROUP] for i in range(0, len(matrix), ROW_GROUP)]
        file["at"][name] = [content.find(group.data) for group in groups]
    del content
    if pictures is not None:
        file["pictures"] = begin
    writer.add_key_value_metadata({FILE: json.dumps(file, sort_keys=True)})
    writer.close()
    length = footer_length(bytes(sink.getbuffer()[-8:]))
    sink.seek(-length, io.SEEK_END)
    footer = sink.read()
    sink.seek(-length, io.SEEK_END)
    sink.write(sealed(footer))
    return sink.getvalue()


def matrix(column: Any) -> np.ndarray:
    """Returns a column of fixed-size lists as an array (rows, d)."""
    values = column.combine_chunks().flatten()
    return values.to_numpy().reshape(len(column), column.type.list_size)


def npy(matrix: np.ndarray) -> bytes:
    """Encodes an array as a .npy file."""
    file = io.BytesIO()
    np.save(file, matrix)
    return file.getvalue()
