"""What the rows of a job have besides their embeddings: keys, paths, captions, other columns.

They are held in memory as far as they fit, so that a page of results costs no reads.
"""

import collections
import concurrent.futures
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.search.index import SHOWN, Damaged, Index
from clip_jax.serve.cache import Cache
from clip_jax.serve.filters import as_numbers, matching
from clip_jax.sources.features import is_text
from clip_jax.sources.where import Condition

# Bytes of all columns in memory; parts beyond are read when they are needed.
MEMORY = 1 << 30
# Parts that were read when they were needed, and are kept for the next time.
RECENT = 8
# The masks of conditions that are kept.
MASKS = 32
# Distinct values of a column for which the page has a list to choose from.
CHOICES, FEW_NUMBERS = 60, 12


class Columns:
    """The columns of a job's rows.

    Attributes:
        others: the names of the columns that were passed through.
        types: the Arrow type of each column by name, without the embeddings.
        damaged: the parts that turned out to be damaged.
    """

    def __init__(self, index: Index, others: Sequence[str]):
        """Reads the columns, as far as they fit.

        Raises:
            OSError: they can't be read.
        """
        self._index, self.others = index, list(others)
        self._names = {*SHOWN, *others}
        self._parts = index.bounds()
        self._begins = [begin for _, begin, _ in self._parts]
        self._held: dict[int, Any] = {}
        self._recent: Cache[Any] = Cache(RECENT)
        self._masks: Cache[np.ndarray] = Cache(MASKS)
        self.types: dict[str, Any] = {}
        self.damaged: set[str] = set()
        self._description: list[dict[str, Any]] | None = None
        self._hold()

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Returns the values of some rows by column, as plain JSON has them.

        Raises:
            Damaged: a part is damaged.
            OSError: it can't be read.
        """
        found: list[dict[str, Any]] = [{} for _ in numbers]
        of_part: dict[int, list[int]] = collections.defaultdict(list)
        for place, number in enumerate(numbers):
            of_part[self._part(number)].append(place)
        for part, places in of_part.items():
            some = [numbers[place] - self._begins[part] for place in places]
            table = self._table(part).take(some)
            for name in table.column_names:
                for place, value in zip(places, plain(table[name]), strict=True):
                    found[place][name] = value
        return found

    def number_of(self, key: str) -> int | None:
        """Returns the number of the first row with a key; None if there is none.

        Raises:
            OSError: the keys can't be read.
        """
        import pyarrow.compute as pc

        for part, (_, begin, _) in enumerate(self._parts):
            table = self._sound(part)
            place = -1 if table is None else pc.index(table["key"], key).as_py()
            if place >= 0:
                return begin + place
        return None

    def mask(self, conditions: Sequence[Condition]) -> np.ndarray | None:
        """Returns which rows meet all conditions, (n,) bool; None without conditions.

        Those of damaged parts don't.

        Raises:
            OSError: the columns can't be read.
        """
        if not conditions:
            return None
        key = tuple(sorted(conditions, key=str))
        if (found := self._masks.get(key)) is not None:
            return found
        parts = []
        for part, (_, begin, end) in enumerate(self._parts):
            table = self._sound(part)
            if table is None:
                parts.append(np.zeros(end - begin, bool))
                continue
            met = [matching(condition, table[condition.name]) for condition in conditions]
            parts.append(np.logical_and.reduce(met))
        mask = np.concatenate(parts)
        self._masks.put(key, mask)
        return mask

    def described(self) -> list[dict[str, Any]]:
        """Describes the columns for the page's filters, those that were passed through first.

        Each has `name` and `kind`: "choice" with `values` and `counts`, "number" with `least` and
        `most`, "text", or "other", which can't be filtered.
        """
        if self._description is None:
            found = [self._described(name) for name in self.others if name in self.types]
            texts = [name for name in SHOWN[1:] if name in self.types]
            found += [{"name": name, "kind": "text"} for name in reversed(texts)]
            self._description = found
        return self._description

    def _described(self, name: str) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        type_ = self.types[name]
        is_category = pa.types.is_dictionary(type_)
        type_ = type_.value_type if is_category else type_
        is_number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
        if not (is_text(type_) or is_number or pa.types.is_boolean(type_)):
            return {"name": name, "kind": "other"}
        column = pa.chunked_array(
            [
                chunk.cast(type_) if is_category else chunk
                for table in self._held.values()
                for chunk in table[name].chunks
            ],
            type_,
        )
        if is_text(type_) and (numbers := as_numbers(column)) is not None:  # as in a CSV file
            column, is_number = numbers, True
        if pa.types.is_floating(column.type):  # NaN equals nothing: no condition finds it
            column = column.filter(pc.call_function("equal", [column, column]))
        counted: Any = column.drop_null().value_counts()
        few = FEW_NUMBERS if is_number else CHOICES
        if 0 < len(counted) <= few and len(self._held) == len(self._parts):
            pairs = [(found["values"], found["counts"]) for found in counted.to_pylist()]
            pairs.sort(key=(lambda p: p[0]) if is_number else (lambda p: (-p[1], p[0])))
            values = [_as_written(value) for value, _ in pairs]
            return {
                "name": name,
                "kind": "choice",
                "values": values,
                "counts": [n for _, n in pairs],
            }
        if is_number:
            bounds: Any = pc.call_function("min_max", [column])
            least, most = (_plain_number(bounds[end].as_py()) for end in ("min", "max"))
            return {"name": name, "kind": "number", "least": least, "most": most}
        return {"name": name, "kind": "text"}

    def _hold(self) -> None:
        left = MEMORY

        def read(part: int) -> Any:
            try:
                return self._read(part) if left > 0 else None
            except Damaged as error:
                self.damaged |= error.parts
                return None

        with concurrent.futures.ThreadPoolExecutor() as pool:
            for part, table in enumerate(pool.map(read, range(len(self._parts)))):
                if table is not None:
                    if not self.types:
                        self.types = dict(zip(table.column_names, table.schema.types, strict=True))
                    left -= table.nbytes
                    self._held[part] = table

    def _table(self, part: int) -> Any:
        table = self._held.get(part)
        if table is None:
            table = self._recent.get(part)
        if table is None:
            table = self._read(part)
            self._recent.put(part, table)
        return table

    def _sound(self, part: int) -> Any:
        """Returns a part's columns; None if it is damaged."""
        try:
            return self._table(part)
        except Damaged as error:
            self.damaged |= error.parts
            return None

    def _read(self, part: int) -> Any:
        return self._index.columns(self._parts[part][0], self._names).combine_chunks()

    def _part(self, number: int) -> int:
        return int(np.searchsorted(self._begins, number, side="right")) - 1


def plain(column: Any) -> list[Any]:
    """Returns the values of an Arrow column as numbers, strings, booleans or None."""
    import pyarrow as pa

    type_ = column.type
    if is_text(type_) or pa.types.is_boolean(type_):
        return column.to_pylist()
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return [_plain_number(value) for value in column.to_pylist()]
    try:
        return column.cast(pa.string()).to_pylist()
    except pa.ArrowException:
        pass
    try:
        return [None if value is None else str(value) for value in column.to_pylist()]
    except (pa.ArrowException, ValueError, OverflowError):  # such as dates beyond Python's
        return [str(type_)] * len(column)


def _as_written(value: Any) -> Any:
    """Returns a value as a condition has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, float) and value.is_integer() else _plain_number(value)


def _plain_number(value: Any) -> Any:
    is_odd = isinstance(value, float) and not math.isfinite(value)
    return str(value) if is_odd else value
