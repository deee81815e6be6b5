"""Moments as people write them in conditions: a year, a month, a day, or more."""

import datetime
from typing import Any


def moment_of(text: str) -> datetime.datetime | None:
    """Reads a year, a month, a day or a moment in ISO 8601.

    Returns:
        The moment, in UTC and without a zone; of a year, a month or a day its first. None for any
        other text.
    """
    missing = {4: "-01-01", 7: "-01"}.get(len(text), "") if text.isascii() else ""
    try:
        moment = datetime.datetime.fromisoformat(text + missing)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
    return moment


def as_written(moment: datetime.datetime, type_: Any) -> str:
    """Returns a moment as Arrow writes the values of a column of times, for comparing texts.

    A moment that the column can't hold is written longer, and comes between its neighbours.
    """
    import pyarrow as pa

    if pa.types.is_date(type_) and moment.time() != datetime.time():  # Arrow would cut it off
        return str(moment)
    try:
        return pa.scalar(moment, pa.timestamp("us")).cast(type_).cast(pa.string()).as_py()
    except pa.ArrowException:
        return str(moment)
