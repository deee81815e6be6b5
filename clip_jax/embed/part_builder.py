"""Builds the part of a chunk, with embeddings and errors, from its loaded rows."""

import base64
import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.embed.ahead import Ahead
from clip_jax.embed.counts import Counts
from clip_jax.embed.device_resize import DeviceResizer, Resized
from clip_jax.embed.parts import Error, Part, Parts, Written
from clip_jax.embed.plan import Pending
from clip_jax.encoder import Encoder
from clip_jax.loading import CpuGate, Loaded
from clip_jax.sources import Input, Record
from clip_jax.sources.records import Shard, as_text

# Batches in one call of the encoder, which computes one while it transfers the next.
BATCHES = 4
# Rows whose columns are kept as Python objects, which need several times Arrow's memory.
PLAIN = 512


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns and formats of a job's parts.

    Attributes:
        source: the input.
        what: "images", "texts" or "both".
        others: the columns passed through.
        dtype: the dtype of the stored embeddings.
        format: "parquet" or "npy".
    """

    source: Input
    what: str
    others: Sequence[str]
    dtype: np.dtype
    format: str

    def __post_init__(self):
        taken = [self.path, "key", "caption", "embedding", "text_embedding"]
        if clashing := [name for name in self.others if name in taken]:
            raise ValueError(
                f"columns of these names are in the output already: {', '.join(clashing)}"
            )

    @property
    def path(self) -> str:
        """The name of the column of paths."""
        return "image_path" if self.format == "npy" else "path"

    def schema(self) -> Any:
        """Returns the Arrow schema of a part, without its embeddings."""
        import pyarrow as pa

        fields = [pa.field("key", pa.string(), nullable=False)]
        if self.source.has_images:
            fields.append(pa.field(self.path, pa.string()))
        if self.source.has_captions:
            fields.append(pa.field("caption", pa.string()))
        types = self.source.types
        return pa.schema([*fields, *(pa.field(n, types[n] or pa.string()) for n in self.others)])

    def row(self, record: Record) -> dict[str, Any]:
        """Returns the values of a record by column of the part."""
        columns = {"key": record.key, self.path: record.path, "caption": record.caption}
        columns = {name: text and as_text(text) for name, text in columns.items()}
        types = self.source.types
        others = {
            name: _text(value) if types[name] is None else _fitting(value, types[name])
            for name, value in record.columns.items()
        }
        return columns | others

    def noted_types(self) -> str:
        """Returns the Arrow types of the columns passed through, encoded for `job.json`."""
        types = self.source.types
        if all(types[name] is None for name in self.others):
            return ""
        import pyarrow as pa

        schema = pa.schema([(name, types[name] or pa.null()) for name in self.others])
        return base64.b64encode(schema.serialize().to_pybytes()).decode()

    def typed(self, noted: str) -> "Layout":
        """Returns this layout with the column types of the job's first run, if noted.

        New parts need the types of the existing ones, even if some file can't be read now.

        Raises:
            ValueError: `noted` is damaged.
        """
        if not noted:
            return self
        import pyarrow as pa

        try:
            schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(noted)))
            types = dict(zip(self.others, schema.types, strict=True))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(
                f"job.json is damaged ({error}): remove it, and start the same job again"
            ) from None
        return dataclasses.replace(self, source=dataclasses.replace(self.source, types=types))


class PartBuilder:
    """Gathers the rows of one chunk in order and embeds them in whole batches."""

    def __init__(
        self,
        pending: Pending,
        shard: Shard,
        layout: Layout,
        encoder: Encoder,
        counts: Counts,
        gate: CpuGate,
        ahead: Ahead,
        resizer: DeviceResizer | None = None,
    ):
        """Starts with no rows; the shard, at least these rows of it, gives their stamp."""
        self._pending, self._layout, self._encoder, self._counts = pending, layout, encoder, counts
        self._shard = shard
        self._gate, self._ahead, self._resizer = gate, ahead, resizer
        self._seen = 0
        self._rows: list[int] = []
        self._schema = layout.schema()
        self._columns: list[dict[str, Any]] = []
        self._tables: list[Any] = []
        self._errors: list[Error] = []
        self._pixels: list[np.ndarray | Resized] = []
        self._digests: list[int | None] = []
        self._tokens: list[np.ndarray] = []
        # Results of the encoder, or futures of them.
        self._images: list[concurrent.futures.Future] = []
        self._texts: concurrent.futures.Future | None = None
        self._part: Part | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all rows of the chunk have been added."""
        return not self.num_left

    @property
    def num_rows(self) -> int:
        """How many rows the chunk has."""
        return len(self._pending.rows)

    @property
    def num_left(self) -> int:
        """How many of them have not been added yet."""
        return self.num_rows - self._seen

    def add(self, loaded: Loaded) -> None:
        """Adds the next row."""
        self._seen += 1
        record = loaded.record
        key = as_text(record.key)
        if loaded.problem is not None:
            reason = as_text(loaded.problem)
            self._errors.append(Error(loaded.row, key, reason))
            self._counts.failed(f"{key}: {reason}")
            return
        self._rows.append(loaded.row)
        self._columns.append(self._layout.row(record))
        if len(self._columns) == PLAIN:
            self._pack()
        if loaded.tokens is not None:
            self._tokens.append(loaded.tokens)
        if loaded.pixels is not None:
            pixels = loaded.pixels
            if self._resizer is not None and self._resizer.is_taken(pixels):
                pixels = self._resizer.add(pixels)
            self._pixels.append(pixels)
            self._digests.append(loaded.digest)
            if len(self._pixels) == BATCHES * self._encoder.batch_size:
                self._embed_pixels()
        else:
            self._counts.rows += 1

    def embed_rest(self) -> None:
        """Begins to embed the remaining rows."""
        self._embed_pixels()
        if self._tokens:
            self._texts = self._ahead.submit(functools.partial(self._embedded_texts, self._tokens))
            self._tokens = []

    def finish(self) -> None:
        """Waits for the embeddings and assembles the part."""
        import pyarrow as pa

        dtype, towers = self._layout.dtype, []
        if self._layout.what != "texts":
            towers.append(np.concatenate([self._no_rows(), *(x.result() for x in self._images)]))
            self._images = []
        if self._layout.what != "images":
            towers.append(self._texts.result() if self._texts else self._no_rows())
        self._pack()
        names = ("embedding", "text_embedding")
        self._part = Part(
            pa.concat_tables(self._tables).combine_chunks(),
            dict(zip(names, (tower.astype(dtype, copy=False) for tower in towers), strict=False)),
            None if self._layout.what == "texts" else np.array(self._digests, np.uint64),
        )
        self._tables = []

    def save(self, parts: Parts) -> None:
        """Writes the part, merged with an existing one: no embedded row becomes an error.

        Raises:
            OSError: the part can't be written.
        """
        assert self._part is not None  # finished
        chunk, part, errors = self._pending.chunk, self._part, self._errors
        rows = self._rows
        # A part without failed rows is complete: there is nothing to merge.
        there = parts.read(chunk.name, chunk.begin) if len(rows) < len(chunk) else None
        if there is not None:
            part, rows, errors = self._merged(there)
            failed = [{error.row for error in each} for each in (errors, there.errors)]
            if self._pending.is_retry and rows == list(there.rows) and failed[0] == failed[1]:
                return  # nothing has changed
        stamp = None
        # A stamp vouches for all rows, also those merged from the existing part.
        if there is None or there.mark == self._pending.known:
            stamp = self._shard.stamp(rows)
        parts.write(chunk, self._pending.shard_rows, part, errors, stamp)
        self._counts.parts += 1

    def _pack(self) -> None:
        import pyarrow as pa

        try:
            self._tables.append(pa.Table.from_pylist(self._columns, schema=self._schema))
        except (pa.ArrowException, OverflowError):
            for name in self._layout.others:
                type_ = self._schema.field(name).type
                for row in self._columns:
                    _check_fits(row[name], type_, name, row["key"])
            raise
        self._columns = []

    def _no_rows(self) -> np.ndarray:
        return np.empty((0, self._encoder.embed_dim), self._layout.dtype)

    def _embed_pixels(self) -> None:
        if self._pixels:
            if self._resizer is not None:
                self._resizer.flush()
            call = functools.partial(self._embedded_images, self._pixels)
            self._images.append(self._ahead.submit(call))
            self._pixels = []

    def _embedded_images(self, pixels: list[np.ndarray | Resized]) -> np.ndarray:
        with self._gate.computing(), self._counts.timing("device"):
            stacked = np.stack([x.pixels() if isinstance(x, Resized) else x for x in pixels])
            found = self._encoder.images(stacked)
        self._counts.rows += len(pixels)
        return found.astype(self._layout.dtype, copy=False)

    def _embedded_texts(self, tokens: list[np.ndarray]) -> np.ndarray:
        with self._counts.timing("device"):
            return self._encoder.texts(np.stack(tokens))

    def _merged(self, there: Written) -> tuple[Part, list[int], list[Error]]:
        """Returns the merged part, its row numbers, and the errors of the other rows."""
        import pyarrow as pa

        assert self._part is not None
        part, old, rows = self._part, there.part, there.rows
        now, tried = set(self._rows), {*self._rows, *(error.row for error in self._errors)}
        kept = [place for place, row in enumerate(rows) if row not in now]
        embedded = [*(rows[place] for place in kept), *self._rows]
        order = np.argsort(np.array(embedded, np.int64), kind="stable")

        def merge(before: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([before[kept], new])[order]

        columns = old.columns.take(pa.array(kept, pa.int64()))
        columns = pa.concat_tables([columns, part.columns])
        merged = Part(
            columns.take(order).combine_chunks(),
            {name: merge(old.embeddings[name], new) for name, new in part.embeddings.items()},
            None
            if old.pictures is None or part.pictures is None
            else merge(old.pictures, part.pictures),
        )
        failed = [error for error in there.errors if error.row not in tried] + self._errors
        failed = {error.row: error for error in failed}
        left = sorted(failed.keys() - set(embedded))
        return merged, sorted(embedded), [failed[row] for row in left]


def _fitting(value: Any, type_: Any) -> Any:
    """Casts an Arrow scalar to a column's type, which Arrow requires to match exactly."""
    import pyarrow as pa

    return value.cast(type_) if isinstance(value, pa.Scalar) and value.type != type_ else value


def _check_fits(value: Any, type_: Any, name: str, key: str) -> None:
    import pyarrow as pa

    try:
        pa.array([value], type_)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"the column {name!r}, {type_} in the whole input, can't hold {value!r} of the row "
            f"{key!r}: {error}"
        ) from None


def _text(value: Any) -> str | None:
    """Returns a value of an untyped table as text, as JSON if it is no string."""
    if value is None or isinstance(value, str):
        return value and as_text(value)
    return as_text(json.dumps(value, ensure_ascii=False, sort_keys=True))
