"""Rows of Arrow's batches as Python's values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clip_jax.sources.faults import problem_of
from clip_jax.sources.features import class_name, class_names


def rows_of(batch: Any) -> list[dict[str, Any] | str]:
    """Returns the rows of a batch, each as a dict or as a description of its problem."""
    try:
        return batch.to_pylist()
    except MemoryError:
        raise
    except Exception:  # a bad row: text that isn't UTF-8, or a date that Python can't represent
        return [_row(batch, i) for i in range(len(batch))]


def _row(batch: Any, i: int) -> dict[str, Any] | str:
    """Returns a row of a batch, or a description of its problem."""
    row = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[i].as_py()
        except UnicodeError:
            return f"the column {name!r} is not UTF-8"
        except MemoryError:
            raise
        except Exception as error:
            return f"the column {name!r} can't be read: {problem_of(error)}"
    return row


def fields_of(
    file: Any, names: Sequence[str], batch_size: int
) -> Iterator[Mapping[str, Any] | str]:
    """Yields the values of some columns, to be compared: classes by their names, times as text.

    Raises:
        ValueError: the file has no such column.
    """
    schema = file.schema_arrow
    if missing := [name for name in names if name not in schema.names]:
        raise ValueError(f"no column {missing[0]!r}, which where names")
    for batch in file.iter_batches(batch_size, columns=list(names)):
        yield from compared_rows(batch, schema, names)


def compared_rows(batch: Any, schema: Any, names: Sequence[str]) -> Iterator[dict[str, Any] | str]:
    """Yields the rows of a batch, some columns as they are compared: as they are compared.

    These have classes by their names, and times as text.

    Args:
        batch: the batch.
        schema: of the whole file.
        names: the columns to compare.
    """
    import pyarrow as pa

    classes = {name: found for name in names if (found := class_names(schema, name)) is not None}
    for place, field in enumerate(batch.schema):
        if field.name in names and pa.types.is_temporal(field.type):
            batch = batch.set_column(place, field.name, batch.column(place).cast(pa.string()))
    for row in rows_of(batch):
        if isinstance(row, dict):
            for name, found in classes.items():
                row[name] = class_name(row[name], found)
        yield row
