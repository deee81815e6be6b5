"""Conditions that a column can't have are refused, and numbers of any size are compared."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from clip_jax.sources import Where
from clip_jax.sources.features import fitted

SCHEMA = pa.schema(
    [
        ("flag", pa.bool_()),
        ("length", pa.duration("s")),
        ("single", pa.float32()),
        ("half", pa.float16()),
        ("price", pa.decimal128(9, 2)),
    ]
)
HUGE = "1" + 400 * "0"


def holds(condition: str, value: object) -> bool:
    where = fitted(Where.of(condition), SCHEMA)
    return where.holds({where.names[0]: value})


@pytest.mark.parametrize(
    "condition",
    [
        "width>=100 and lang=en",
        "lang=en or lang=de",
        "lang=en AND width in 1,2",
        "lang=en && width<3",
        "caption~sea | caption~lake",
    ],
)
def test_two_conditions_in_one_are_refused_rather_than_one_of_a_long_value(condition):
    with pytest.raises(ValueError, match="expected one condition at a time") as caught:
        Where.of(condition)
    assert repr(condition) in str(caught.value)


@pytest.mark.parametrize(
    "condition", ["caption~cats and dogs", "caption='a and b=c'", 'caption~"x or y>z"']
)
def test_and_is_a_word_like_any_other_in_text(condition):
    (found,) = Where.of(condition).conditions
    assert found.values[0].text in ("cats and dogs", "a and b=c", "x or y>z")


@pytest.mark.parametrize("condition", ["flag=yes", "flag!=yes", "flag in true,maybe", "flag>0"])
def test_a_column_of_truth_values_is_compared_with_nothing_else(condition):
    with pytest.raises(ValueError, match="'flag' is true or false; expected flag=true"):
        fitted(Where.of(condition), SCHEMA)


@pytest.mark.parametrize("condition", ["flag=TRUE", "flag=1", "flag!=false", "flag in true,false"])
def test_truth_values_are_written_in_words_or_numbers(condition):
    assert holds(condition, True)


def test_a_duration_is_not_compared_with_a_number_of_whatever_unit():
    with pytest.raises(ValueError, match=r"'length' is duration\[s\]; expected one of numbers"):
        holds("length>5", datetime.timedelta(seconds=3))


@pytest.mark.parametrize("number", [HUGE, "1e300", "1e9999"])
@pytest.mark.parametrize("column", ["single", "half"])
def test_numbers_beyond_a_columns_own_are_larger_than_all_of_them(column, number):
    assert holds(f"{column}<{number}", np.float16(60000).item())
    assert holds(f"{column}>-{number}", -1.0)
    assert not holds(f"{column} in 2,{number}", 1.0)


@pytest.mark.parametrize("exponent", ["999999999999999999999", "-999999999999999999999"])
def test_an_exponent_beyond_all_decimals_compares_with_decimals(exponent):
    is_large = not exponent.startswith("-")
    assert holds(f"price<1e{exponent}", decimal.Decimal("3.50")) == is_large
