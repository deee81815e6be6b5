"""Parts: the output of each chunk, in files whose checksums show that they are complete.

The content of a part depends on its rows and their pictures alone. The sizes and times of the
input's files are kept apart, in `stamps/`; if these are lost, the rows are compared instead.
"""

import bisect
import contextlib
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.embed.chunks import Chunk, shard_of
from clip_jax.embed.encoding import ABOUT as ABOUT
from clip_jax.embed.encoding import FILE as FILE
from clip_jax.embed.encoding import ROW_GROUP as ROW_GROUP
from clip_jax.embed.encoding import Contents, contents, encoded, npy
from clip_jax.embed.encoding import matrix as matrix
from clip_jax.embed.extensions import EXTENSION, INPUTS
from clip_jax.embed.footer import Footer, is_damage, mark_of
from clip_jax.embed.identity import JOB
from clip_jax.embed.part import Error as Error
from clip_jax.embed.part import Expected as Expected
from clip_jax.embed.part import Finished as Finished
from clip_jax.embed.part import Part as Part
from clip_jax.embed.part import Written as Written
from clip_jax.embed.part import error_table, is_error_table
from clip_jax.embed.tables import chunks_with, end_of
from clip_jax.messages import counted, some
from clip_jax.storage import Disk, Unreachable, storage

ERRORS, STAMPS = "errors", "stamps"
# The suffix of an array that replaces the previous one once its table has been written.
NEXT = ".next"


class Parts:
    """The parts of one job in an output folder, as Parquet."""

    # Files of a chunk other than its table, by the column of embeddings that they hold.
    beside: Mapping[str, str] = {}
    table = "part-{}.parquet"
    path_column = "path"

    def __init__(
        self,
        out: str,
        about: Mapping[str, Any],
        expected: Expected,
        extensions: Sequence[Mapping[str, Any]] = (),
    ):
        """Reads no file yet.

        Args:
            out: the folder.
            about: metadata common to all parts: `fingerprint`, and the model's identity.
            expected: what the parts must have.
            extensions: the notes of the job's extensions, whose parts have fingerprints of theirs.
        """
        self._out, self._storage, self._about = out, storage(out), dict(about)
        self._firsts = [0, *(note["first"] for note in extensions)]
        self._fingerprints = [about["fingerprint"], *(note["fingerprint"] for note in extensions)]
        self._expected = expected
        self._errors = f"{ERRORS}/{self.table.rpartition('/')[2]}"
        self._stamps = f"{STAMPS}/{{}}.json"

    def writes(self, path: str) -> bool:
        """Whether a path is one of a part's tables, of any chunk."""
        names = (f"{self._out}/{name}".split("{}") for name in (self.table, self._errors))
        return any(
            path.startswith(head)
            and path.endswith(tail)
            and re.fullmatch(r"\d+-\d+", path[len(head) : len(path) - len(tail)])
            for head, tail in names
        )

    def names(self) -> set[str]:
        """Returns the names of the job's chunks that have a table, valid or not."""
        shards = self._expected.shards
        found = chunks_with(self._out, self.table)
        return {name for name in found if shards is None or shard_of(name) < shards}

    def check_strays(self) -> None:
        """Raises an error if there are parts of files that the input doesn't have.

        Raises:
            ValueError: there are; the message names them.
        """
        files = counted(self._expected.shards or 0, "file")
        self.refuse(chunks_with(self._out, self.table) - self.names(), f"the input has {files}")

    def refuse(self, strays: Collection[str], why: str) -> None:
        """Raises an error that says to remove those of some parts that are this job's.

        Raises:
            OSError: they can't be read.
            ValueError: there are some.
        """
        ours = [name for name in sorted(strays) if self._whole(self.table, name, entirely=False)]
        if found := [self.path(self.table, name) for name in ours]:
            raise ValueError(
                f"{why}, and the output has parts of more (copies?): remove {some(found)}"
            )

    def finished(self, name: str, entirely: bool = False) -> Finished | None:
        """Returns the metadata of a chunk's part, or None if it isn't complete or of this job.

        Args:
            name: the chunk's name.
            entirely: whether to read the whole part on object stores too, which verify their data
                themselves, and where reading all would cost as much as the job.

        Raises:
            OSError: the part exists but can't be read now.
        """
        entirely = entirely or isinstance(self._storage, Disk)
        found = self._whole(self.table, name, entirely)
        if found is None or not self._is_table(footer := found.footer, name):
            return None
        for column, file in self.beside.items():
            path = self.path(file, name)
            if self._array(path, footer.beside[column], entirely) is None:
                return None
        failed = listed = frozenset()
        if footer.errors:
            listed = frozenset(error.row for error in self.errors(name))
            # An earlier version kept the row numbers in the table of errors only.
            failed = listed if footer.failed is None else frozenset(footer.failed)
            if len(failed) != footer.errors:
                return None
        return Finished(
            footer.rows,
            footer.errors,
            footer.shard_rows,
            failed,
            failed - listed,
            self._stamp(name, footer.mark),
            footer.mark,
            footer.digests is not None,
        )

    def footer(self, name: str) -> Footer | None:
        """Returns the footer of a chunk's table; None if it is damaged or another job's.

        Raises:
            OSError: it can't be read now.
        """
        found = self._whole(self.table, name, entirely=False)
        return found.footer if found is not None and self._is_table(found.footer, name) else None

    def _is_table(self, footer: Footer, name: str) -> bool:
        """Whether a footer is that of a chunk's table."""
        return (
            footer.chunk in (None, name)  # else a copy of another chunk's
            and footer.rows == footer.embedded == sum(footer.groups)
            and footer.embedded + footer.errors == self._expected.rows(name, footer.shard_rows)
            and self._expected.has_columns(footer.schema, self.path_column, not self.beside)
            and footer.beside.keys() >= self.beside.keys()
        )

    def write(
        self,
        chunk: Chunk,
        shard_rows: int,
        part: Part,
        errors: Sequence[Error],
        stamp: str | None = None,
    ) -> None:
        """Writes a chunk's part, which is valid as soon as its table has been written.

        Until that moment a part from an earlier run stays valid.

        Raises:
            OSError: a file can't be written; no incomplete file is left.
        """
        about = self._about | {
            "fingerprint": self._fingerprint_of(chunk.name),
            "chunk": chunk.name,
            "rows": len(part.columns),
            "errors": len(errors),
            "shard_rows": shard_rows,
            **({"failed": [error.row for error in errors]} if errors else {}),
        }
        path = self.path(self._errors, chunk.name)
        if errors:
            self._storage.write(path, encoded(error_table(errors), {}, about))
        inside = dict(part.embeddings)
        about["beside"] = {}
        is_there = bool(self.beside) and self._is_there(self.path(self.table, chunk.name))
        arrays = {}
        for column, file in self.beside.items():
            data = npy(inside.pop(column))
            array = self.path(file, chunk.name)
            if is_there:  # the old table needs its array until it is replaced
                arrays[array], array = data, _next(array)
            self._storage.write(array, data)
            about["beside"][column] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        table = encoded(part.columns, inside, about, part.pictures)
        self._write_stamp(chunk.name, mark_of(table), stamp)
        self._storage.write(self.path(self.table, chunk.name), table)
        for array, data in arrays.items():
            self._storage.write(array, data)
            self._storage.remove(_next(array))
        if not errors:
            self._storage.remove(path)

    def note(self, name: str, finished: Finished, stamp: str | None) -> None:
        """Records that a part matches the version of the input's files given by `stamp`.

        Raises:
            OSError: the stamp can't be written.
        """
        self._write_stamp(name, finished.mark, stamp)

    def read(self, name: str, begin: int) -> Written | None:
        """Reads the part of a chunk; returns None if there is no valid one.

        Args:
            name: the chunk's name.
            begin: the chunk's first row.

        Raises:
            OSError: the part exists but can't be read now.
        """
        finished, found = self.finished(name), self._whole(self.table, name, True)
        # Another process may have replaced it just now.
        if finished is None or found is None or finished.mark != found.footer.mark:
            return None
        columns, embeddings = found.table()
        for column, file in self.beside.items():
            path = self._array(self.path(file, name), found.footer.beside[column], True)
            if path is None:
                return None
            embeddings[column] = np.load(io.BytesIO(self._storage.read(path)))
        part = Part(columns, embeddings, found.pictures)
        errors = [error for error in self.errors(name) if error.row in finished.failed]
        return Written(part, finished.embedded(begin), errors, finished.mark)

    def keys(self, name: str) -> list[str]:
        """Reads the keys of a valid part.

        Raises:
            OSError: they can't be read.
            ValueError: the part is damaged: on object stores only the footers are checked.
        """
        import pyarrow.parquet as pq

        path = self.path(self.table, name)
        source = self._storage.arrow(path)
        try:
            return pq.read_table(source, columns=["key"])["key"].to_pylist()
        except Exception as error:
            if not is_damage(error):
                raise
            raise ValueError(
                f"{path} is damaged: run the same clip-jax embed command again, with --verify"
            ) from None

    def errors(self, name: str) -> list[Error]:
        """Reads the rows of a chunk that could not be embedded; none if their table is damaged.

        Raises:
            OSError: they can't be read.
        """
        found = self._whole(self._errors, name, True)
        if found is None or not is_error_table(found.footer.schema):
            return []
        footer = found.footer
        if footer.rows != footer.errors or footer.chunk not in (None, name):
            return []
        return [Error(**error) for error in found.table()[0].to_pylist()]

    def clean(self, is_ours: Callable[[str], bool], without_errors: Collection[str]) -> None:
        """Removes unfinished files that killed processes have left.

        Args:
            is_ours: whether a chunk of that name belongs to this worker.
            without_errors: names of the chunks with a valid part and no failed row.
        """
        notes = (f".{JOB}.", f".{EXTENSION.partition('{')[0]}")
        for folder, heads in ((self._out, notes), (f"{self._out}/{INPUTS}", ("",))):
            for name in self._storage.abandoned(folder):
                if name.startswith(heads):
                    self._storage.remove(f"{folder}/{name}")
        for file in (self.table, self._errors, self._stamps, *self.beside.values()):
            folder, _, pattern = f"{self._out}/{file}".rpartition("/")
            left = self._storage.abandoned(folder)
            if file == self._errors:  # outdated by a run that was killed before removing it
                stale = {pattern.format(name) for name in without_errors}
                left += [name for name in self._storage.names(folder) if name in stale]
            for name in left:
                chunk = re.search(r"\d{6,}-\d{6,}", name)
                if chunk is not None and is_ours(chunk[0]):
                    self._storage.remove(f"{folder}/{name}")

    def settle(self, is_ours: Callable[[str], bool]) -> None:
        """Completes the replacement of arrays that killed processes have begun.

        Args:
            is_ours: whether a chunk of that name belongs to this worker.
        """
        for column, file in self.beside.items():
            folder, _, pattern = _next(f"{self._out}/{file}").rpartition("/")
            head, _, tail = pattern.partition("{}")
            for found in self._storage.names(folder):
                name = found.removeprefix(head).removesuffix(tail)
                if pattern.format(name) == found and is_ours(name):
                    self._put_next(name, column, self.path(file, name))

    def _put_next(self, name: str, column: str, path: str) -> None:
        """Moves a waiting array to its final path, or removes it if its table is missing."""
        table = self._whole(self.table, name, True)
        expected = None if table is None else table.footer.beside.get(column)
        if expected is not None and self._is_array(_next(path), expected, True):
            self._storage.write(path, self._storage.read(_next(path)))
        self._storage.remove(_next(path))

    def path(self, file: str, name: str) -> str:
        """Returns the path of a chunk's file, given the name's pattern."""
        return f"{self._out}/{file.format(name)}"

    def _fingerprint_of(self, name: str) -> str:
        return self._fingerprints[bisect.bisect_right(self._firsts, shard_of(name)) - 1]

    def _whole(self, file: str, name: str, entirely: bool) -> Contents | None:
        """Reads a chunk's file; returns None if it is missing, damaged or another job's."""
        path = self.path(file, name)
        try:
            data = self._storage.read(path) if entirely else end_of(path)
        except FileNotFoundError:
            return None
        except Unreachable:
            raise
        except OSError as error:  # perhaps temporary: no reason to embed the rows again
            advice = "try again, or remove it to have its rows embedded again"
            raise OSError(error.errno, f"{error.strerror}: {advice}", path) from None
        found = contents(data, is_whole=entirely)
        if found is None or found.footer.fingerprint != self._fingerprint_of(name):
            return None
        return found

    def _array(self, path: str, expected: Mapping[str, int], entirely: bool) -> str | None:
        """Finds the array that a table expects: at its final path, or waiting beside it."""
        places = (path, _next(path))
        return next((p for p in places if self._is_array(p, expected, entirely)), None)

    def _is_array(self, path: str, expected: Mapping[str, int], entirely: bool) -> bool:
        try:
            if not entirely:
                return self._storage.size(path) == expected["bytes"]
            return zlib.crc32(self._storage.read(path)) == expected["crc32"]
        except FileNotFoundError:
            return False

    def _is_there(self, path: str) -> bool:
        try:
            self._storage.size(path)
        except FileNotFoundError:
            return False
        return True

    def _stamp(self, name: str, mark: int) -> str | None:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            found = json.loads(self._storage.read(self.path(self._stamps, name)))
            return found["stamp"] if found["part"] == mark else None
        return None

    def _write_stamp(self, name: str, mark: int, stamp: str | None) -> None:
        path, note = self.path(self._stamps, name), {"part": mark, "stamp": stamp}
        if stamp is None:
            self._storage.remove(path)
        else:
            self._storage.write(path, json.dumps(note).encode() + b"\n")


class NpyParts(Parts):
    """The layout of clip-retrieval: NumPy arrays, and Parquet files with the metadata."""

    table = "metadata/metadata_{}.parquet"
    path_column = "image_path"

    def __init__(self, out: str, about: Mapping[str, Any], expected: Expected, *extensions: Any):
        super().__init__(out, about, expected, *extensions)
        folders = {"image": "img_emb", "text": "text_emb"}
        self.beside = {
            column: "{0}/{0}_".format(folders[tower]) + "{}.npy"
            for column, tower in expected.towers.items()
        }


def _next(path: str) -> str:
    """Returns the path where an array waits until its table has been written."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/.{name}{NEXT}"
