"""The conditions of `clip-jax serve` on columns of times and of categories."""

import datetime

import pytest

from clip_jax.serve.filters import matching, parse
from clip_jax.serve.refusals import Refusal

pa = pytest.importorskip("pyarrow")

# Each at five in the morning, in UTC.
DAYS = [datetime.datetime(2020, 1, day, 5) for day in (1, 2, 3)]
COLUMNS = {
    "taken": pa.array(DAYS, pa.timestamp("us")),
    "seconds": pa.array(DAYS, pa.timestamp("s")),
    "nanos": pa.array(DAYS, pa.timestamp("ns")),
    "zoned": pa.array(DAYS, pa.timestamp("us", "Europe/Berlin")),
    "day": pa.array([moment.date() for moment in DAYS]),
    "hour": pa.array([datetime.time(hour) for hour in (1, 9, 23)]),
    "lang": pa.array(["en", "de", None]).dictionary_encode(),
    "tags": pa.array([["a"], ["b"], None]),
}
TYPES = {name: column.type for name, column in COLUMNS.items()}


def met(text: str) -> list[bool]:
    condition = parse(text, TYPES)
    return matching(condition, pa.chunked_array([COLUMNS[condition.column]])).tolist()


@pytest.mark.parametrize("name", ["taken", "seconds", "nanos", "zoned"])
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (">=2020-01-02", [False, True, True]),
        (">=2020-01-02T05:00", [False, True, True]),
        (">2020-01-02T05:00", [False, False, True]),
        (">=2020-01-02 06:00", [False, False, True]),
        ("=2020-01-02T05:00:00Z", [False, True, False]),
        ("=2020-01-02T06:00:00+01:00", [False, True, False]),
        ("<2020-01", [False, False, False]),
        (">=2020", [True, True, True]),
    ],
)
def test_moments_are_compared_as_moments_however_they_are_written(name, rest, expected):
    assert met(name + rest) == expected


def test_days_are_compared_as_days():
    assert met("day=2020-01-02") == [False, True, False]
    assert met("day!=2020-01-02") == [True, False, True]
    assert met("day<2020-01-02T00:00") == [True, False, False]


def test_times_of_day_are_compared():
    assert met("hour>=09:00") == [False, True, True]


@pytest.mark.parametrize("value", ["soon", "", "2020-13-01", "20", "9" * 400, "nan", "\0"])
def test_what_is_no_moment_is_refused(value):
    with pytest.raises(Refusal, match="taken has times: taken>=2020-01-31 or"):
        parse(f"taken>={value}", TYPES)


def test_categories_are_compared_as_what_they_stand_for():
    assert met("lang=de") == [False, True, False]
    assert met("lang!=de") == [True, False, False]
    assert met("lang~E") == [True, True, False]


@pytest.mark.parametrize("operator", ["=", "~"])
def test_lists_are_refused(operator):
    with pytest.raises(Refusal, match="tags is list"):
        parse(f"tags{operator}a", TYPES)
