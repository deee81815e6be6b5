"""A part as a Parquet file that proves to be whole.

Its schema's metadata says whose it is, and of which rows. What is added to its footer says where
its content ends, what its CRC is, and where the embeddings lie in it, which are neither compressed
nor encoded, so that they can be mapped. After the columns, where no reader of Parquet looks, lie
the digests of the pictures: a footer of their size would have to be read at every start.
"""

import dataclasses
import io
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax.errors import is_exhausted

# Keys of the metadata.
ABOUT, FILE = b"clip_jax", b"clip_jax.file"
# A page of embeddings must hold a row group: pyarrow begins another after 20,000 rows.
ROW_GROUP = 8192
# The columns of embeddings.
COLUMNS = ("embedding", "text_embedding")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a whole file.

    Attributes:
        about: its metadata.
        rows: how many.
        mark: tells it from others of its name.
        digests: where those of the rows' pictures begin; None where it has none.
        data: the file, or its end.
    """

    about: dict[str, Any]
    rows: int
    mark: int
    digests: int | None
    data: bytes

    @property
    def pictures(self) -> np.ndarray | None:
        """(rows,) uint64, the digests of the rows' pictures; of a whole file."""
        if self.digests is None:
            return None
        return np.frombuffer(self.data, "<u8", self.rows, self.digests)

    def table(self) -> tuple[Any, dict[str, np.ndarray]]:
        """Its columns as an Arrow table without metadata, and its embeddings."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table, embeddings = pq.read_table(pa.BufferReader(self.data)), {}
        for column in [name for name in table.column_names if name in COLUMNS]:
            embeddings[column] = matrix(table.column(column))
            table = table.drop_columns(column)
        return table.replace_schema_metadata(None), embeddings


def contents(data: bytes, is_whole: bool) -> Contents | None:
    """What is in a file; None if it is damaged.

    Args:
        data: the file; or its end, from its footer on.
        is_whole: which of the two; only the whole file shows its damages.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(pa.BufferReader(data))
        about, file = (json.loads(found.metadata[key]) for key in (ABOUT, FILE))
        if is_whole and zlib.crc32(memoryview(data)[: file["end"]]) != file["crc32"]:
            return None
        digests = file.get("pictures")
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError) as error:
        if is_exhausted(error):
            raise
        return None
    return Contents(about, found.num_rows, mark_of(data), digests, data)


def encoded(
    table: Any,
    embeddings: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    pictures: np.ndarray | None = None,
) -> bytes:
    """A table as a Parquet file, with embeddings after its first column."""
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
    }
    for name, matrix in embeddings.items():
        groups = [matrix[i : i + ROW_GROUP] for i in range(0, len(matrix), ROW_GROUP)]
        file["at"][name] = [content.find(group.data) for group in groups]
    del content
    if pictures is not None:
        file["pictures"] = begin
    writer.add_key_value_metadata({FILE: json.dumps(file, sort_keys=True)})
    writer.close()
    return sink.getvalue()


def matrix(column: Any) -> np.ndarray:
    """(rows, d) from a column of fixed-size lists."""
    values = column.combine_chunks().flatten()
    return values.to_numpy().reshape(len(column), column.type.list_size)


def footer_length(data: bytes) -> int:
    """Bytes of the footer with which a Parquet file ends, with its length and the last word."""
    return int.from_bytes(data[-8:-4], "little") + 8


def mark_of(data: bytes) -> int:
    """The CRC of a part's footer, which has that of everything else."""
    return zlib.crc32(data[-footer_length(data) :])


def npy(matrix: np.ndarray) -> bytes:
    """An array as a file of NumPy's."""
    file = io.BytesIO()
    np.save(file, matrix)
    return file.getvalue()
