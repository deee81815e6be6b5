"""Parts: what a unit of work leaves behind, in files that prove to be whole.

A part is a Parquet file. Its schema's metadata says whose it is, and of which rows; what is added
to its footer says where its content ends, the content's CRC, and where the embeddings lie in it,
which are neither compressed nor encoded, so that they can be mapped.
"""

import dataclasses
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.embed.identity import JOB
from clip_jax.embed.units import Unit
from clip_jax.errors import is_exhausted
from clip_jax.storage import Disk, Unreachable, storage

# Keys of the metadata.
ABOUT, FILE = b"clip_jax", b"clip_jax.file"
ERRORS = "errors"
# A page of embeddings must hold a row group: pyarrow begins another after 20,000 rows.
ROW_GROUP = 8192


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a unit that could be embedded, in order.

    Attributes:
        columns: an Arrow table of key, path, caption and what was taken along.
        embeddings: (rows, d) by column: `embedding`, and `text_embedding` beside it if both are
            embedded.
    """

    columns: Any
    embeddings: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Error:
    """A row that could not be embedded.

    Attributes:
        row: counted from the shard's first.
        key: its key.
        reason: what is wrong with it.
    """

    row: int
    key: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a part that counts says of itself.

    Attributes:
        rows: those embedded.
        errors: those not.
        shard_rows: all rows of its shard.
        contents: what tells its pictures from others of their names, if that is known.
    """

    rows: int
    errors: int
    shard_rows: int
    contents: str | None = None


class Parts:
    """The parts in an output folder, of one job, as Parquet."""

    # Beside the table: files of a unit by the column of embeddings that they hold.
    beside: Mapping[str, str] = {}
    table = "part-{}.parquet"

    def __init__(self, out: str, about: Mapping[str, Any]):
        """Looks at nothing yet.

        Args:
            out: the folder.
            about: what the metadata says in every part: `fingerprint`, and the model's identity.
        """
        self._out, self._storage, self._about = out, storage(out), dict(about)
        self._errors = f"{ERRORS}/{self.table.rpartition('/')[2]}"

    def names(self) -> set[str]:
        """The names of the units that have left something, whole or not."""
        folder, _, pattern = f"{self._out}/{self.table}".rpartition("/")
        head, _, tail = pattern.partition("{}")
        return {
            name.removeprefix(head).removesuffix(tail)
            for name in self._storage.names(folder)
            if name.startswith(head) and name.endswith(tail)
        }

    def finished(self, name: str) -> Finished | None:
        """What the part of that unit says, if it is whole and of this job."""
        about = self._check(self.path(self.table, name), "rows")
        if about is None:
            return None
        for column, file in self.beside.items():
            if not self._has_array(self.path(file, name), about["beside"][column]):
                return None
        if about["errors"]:
            errors = self._check(self.path(self._errors, name), "errors")
            if errors is None or errors["errors"] != about["errors"]:
                return None
        return Finished(about["rows"], about["errors"], about["shard_rows"], about.get("contents"))

    def check_unclaimed(self) -> None:
        """Refuses to go on where another job's parts lie, but no note says whose they are.

        Raises:
            ValueError: they do; gives both fingerprints.
            OSError: they can't be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name in sorted(self.names()):
            path = self.path(self.table, name)
            try:
                found = pq.read_metadata(self._storage.arrow(path)).metadata
                theirs = json.loads(found[ABOUT])["fingerprint"]
            except Unreachable:
                raise
            except (OSError, pa.ArrowException, ValueError, TypeError, LookupError) as error:
                if is_exhausted(error):
                    raise
                continue  # damaged, and so nobody's
            if theirs != self._about["fingerprint"]:
                raise ValueError(
                    f"{self._out} holds parts of another job, {theirs}, and no {JOB}; this one is "
                    f"{self._about['fingerprint']}. Give another folder, or the same input, model "
                    "and options; or remove the parts."
                )
            return

    def write(
        self,
        unit: Unit,
        shard_rows: int,
        part: Part,
        errors: Sequence[Error],
        contents: str | None = None,
    ) -> None:
        """Leaves a unit's part; it counts from the moment that the last file is there.

        Raises:
            OSError: it can't be written; nothing is left of the file.
        """
        about = self._about | {
            "rows": len(part.columns),
            "errors": len(errors),
            "shard_rows": shard_rows,
            **({} if contents is None else {"contents": contents}),
        }
        path = self.path(self._errors, unit.name)
        if errors:
            self._storage.write(path, _encoded(_error_table(errors), {}, about))
        inside = dict(part.embeddings)
        about["beside"] = {}
        for column, file in self.beside.items():
            data = _npy(inside.pop(column))
            self._storage.write(self.path(file, unit.name), data)
            about["beside"][column] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        self._storage.write(self.path(self.table, unit.name), _encoded(part.columns, inside, about))
        if not errors:
            self._storage.remove(path)

    def read(self, unit: Unit) -> tuple[Part, list[Error]]:
        """A part that counts, and its errors.

        Raises:
            OSError: it can't be read.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(self._storage.arrow(self.path(self.table, unit.name)))
        embeddings = {}
        for column in [name for name in table.column_names if name in COLUMNS]:
            embeddings[column] = matrix(table.column(column))
            table = table.drop_columns(column)
        for column, file in self.beside.items():
            data = self._storage.read(self.path(file, unit.name))
            embeddings[column] = np.load(io.BytesIO(data))
        return Part(table.replace_schema_metadata(None), embeddings), self.errors(unit.name)

    def errors(self, name: str) -> list[Error]:
        """The rows of a unit that could not be embedded.

        Raises:
            OSError: they can't be read.
        """
        import pyarrow.parquet as pq

        path = self.path(self._errors, name)
        try:
            errors = pq.read_table(self._storage.arrow(path)).to_pylist()
        except FileNotFoundError:
            errors = []
        return [Error(**error) for error in errors]

    def clean(self, is_ours: Callable[[str], bool], without_errors: Collection[str]) -> None:
        """Removes what killed processes have left.

        Args:
            is_ours: tells of a unit's name whether it is of our share.
            without_errors: units that count, of which no row has failed.
        """
        for name in self._storage.abandoned(self._out):
            if name.startswith(f".{JOB}."):
                self._storage.remove(f"{self._out}/{name}")
        for file in (self.table, self._errors, *self.beside.values()):
            folder, _, pattern = f"{self._out}/{file}".rpartition("/")
            left = self._storage.abandoned(folder)
            if file == self._errors:  # of a try before the last, removed after the part is there
                stale = {pattern.format(name) for name in without_errors}
                left += [name for name in self._storage.names(folder) if name in stale]
            for name in left:
                unit = re.search(r"\d{6,}-\d{6,}", name)
                if unit is not None and is_ours(unit[0]):
                    self._storage.remove(f"{folder}/{name}")

    def path(self, file: str, name: str) -> str:
        """Where a unit's file is, of that pattern."""
        return f"{self._out}/{file.format(name)}"

    def _check(self, path: str, count: str) -> dict[str, Any] | None:
        """What the metadata of a whole file of this job say."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # A store checks by itself what it gives; reading it all would cost as much as the job.
            data = self._storage.read(path) if isinstance(self._storage, Disk) else None
            source = self._storage.arrow(path) if data is None else pa.BufferReader(data)
            found = pq.read_metadata(source)
            about, file = (json.loads(found.metadata[key]) for key in (ABOUT, FILE))
            whole = data is None or zlib.crc32(memoryview(data)[: file["end"]]) == file["crc32"]
            ours = about["fingerprint"] == self._about["fingerprint"]
            rows = found.num_rows == about[count]
        except Unreachable:
            raise
        except (OSError, pa.ArrowException, ValueError, TypeError, LookupError) as error:
            if is_exhausted(error):
                raise
            return None
        return about if whole and ours and rows else None

    def _has_array(self, path: str, expected: Mapping[str, int]) -> bool:
        try:
            if not isinstance(self._storage, Disk):
                return self._storage.size(path) == expected["bytes"]
            return zlib.crc32(self._storage.read(path)) == expected["crc32"]
        except FileNotFoundError:
            return False


COLUMNS = ("embedding", "text_embedding")


class NpyParts(Parts):
    """The layout that users of clip-retrieval have: arrays, and metadata beside them."""

    table = "metadata/metadata_{}.parquet"

    def __init__(self, out: str, about: Mapping[str, Any], towers: Mapping[str, str]):
        """As `Parts`; `towers` says of each column whether it is of "image" or "text"."""
        super().__init__(out, about)
        folders = {"image": "img_emb", "text": "text_emb"}
        self.beside = {
            column: "{0}/{0}_".format(folders[tower]) + "{}.npy" for column, tower in towers.items()
        }


def error_type() -> Any:
    """The Arrow schema of a table of errors."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
        ]
    )


def _error_table(errors: Sequence[Error]) -> Any:
    import pyarrow as pa

    rows = [dataclasses.asdict(error) for error in errors]
    return pa.Table.from_pylist(rows, schema=error_type())


def _encoded(table: Any, embeddings: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
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
    content = sink.getvalue()
    file = {"end": len(content), "crc32": zlib.crc32(content), "groups": ROW_GROUP, "at": {}}
    for name, matrix in embeddings.items():
        groups = [matrix[i : i + ROW_GROUP] for i in range(0, len(matrix), ROW_GROUP)]
        file["at"][name] = [content.find(group.data) for group in groups]
    del content
    writer.add_key_value_metadata({FILE: json.dumps(file, sort_keys=True)})
    writer.close()
    return sink.getvalue()


def matrix(column: Any) -> np.ndarray:
    """(rows, d) from a column of fixed-size lists."""
    values = column.combine_chunks().flatten()
    return values.to_numpy().reshape(len(column), column.type.list_size)


def _npy(matrix: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, matrix)
    return file.getvalue()
