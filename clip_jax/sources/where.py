"""Conditions on columns, by which only some rows of an input are taken."""

import dataclasses
import decimal
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

# "~": contains, whatever the case of the letters.
OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "~", "in")
TRUTH = {"true": True, "1": True, "false": False, "0": False}
FORMS = "such as width>=256, lang=en, caption~sea, 'lang in en,de' or \"caption!=''\""

_CONDITION = re.compile(
    r"""\s*(?:"(?P<quoted>(?:[^"]|"")+)"\s*|(?P<bare>[^"<>=!~]+?))
    (?:\s*(?P<sign><=|>=|!=|==|=|<|>|~)|(?:(?<=")|\s+)(?P<word>in)(?=[\s(\["'])|\Z)(?P<rest>.*)""",
    re.VERBOSE | re.DOTALL,
)
_OPERATOR = re.compile(r"""\s*[<>=!~]|\s+in(?=[\s(\["'])""")
# What looks like a further condition behind a value.
_FURTHER = re.compile(r"\s(?:and|or|&&?|\|\|?)\s.*(?:[<>=!~]|\sin[\s(])", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# A value in quotes of either kind, doubled inside, or the text up to the next comma.
_VALUE = re.compile(
    r"""\s*(?:'((?:[^']|'')*)'|"((?:[^"]|"")*)"|([^,'"][^,]*))\s*(,|\Z)""", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Value:
    """What a column is compared with.

    Attributes:
        text: as it was given, without quotes.
        number: what it is as a number; None for text, and for numbers in quotes.
    """

    text: str
    number: int | float | None = None

    def __str__(self) -> str:
        return self.text if self.number is not None else _in_quotes(self.text, "'")


@dataclasses.dataclass(frozen=True)
class Condition:
    """A comparison of a column with a value, or with several.

    Attributes:
        name: the column.
        operator: one of `OPERATORS`.
        values: the value; several with "in".
    """

    name: str
    operator: str
    values: tuple[Value, ...]

    def holds(self, found: Any) -> bool:
        """Whether a value of the column fits; a missing one doesn't, whatever the operator."""
        if found is None or (isinstance(found, float) and math.isnan(found)):
            return False
        if self.operator == "~":
            return isinstance(found, str | bytes) and _contains(found, self.values[0].text)
        if self.operator in ("=", "in"):
            return any(_order(found, value) == 0 for value in self.values)
        order = _order(found, self.values[0])
        if self.operator == "!=":
            return order != 0
        return order is not None and _ORDERS[self.operator](order)

    def __str__(self) -> str:
        is_plain = re.fullmatch(r"[\w.\-/]+", self.name)
        name = self.name if is_plain else _in_quotes(self.name, '"')
        sign = " in " if self.operator == "in" else self.operator
        return f"{name}{sign}{','.join(map(str, self.values))}"


@dataclasses.dataclass(frozen=True)
class Where:
    """Conditions that must all hold.

    Numbers are compared as numbers, also where a table of text holds them; text in the order of its
    characters, which is that of dates such as 2024-05-01. Text that is no number fits no comparison
    with a number but !=, and a missing value fits no condition.

    Attributes:
        conditions: the conditions; none for all rows.
    """

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def of(cls, given: "Where | str | Sequence[str] | None") -> "Where":
        """Returns the conditions that are written in a string, or in each of several.

        Raises:
            ValueError: one is none; the message says what was expected.
        """
        if given is None or isinstance(given, Where):
            return given or cls()
        return cls(tuple(map(parse_condition, [given] if isinstance(given, str) else given)))

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are needed, each once."""
        return tuple(dict.fromkeys(condition.name for condition in self.conditions))

    def also(self, other: "Where") -> "Where":
        """Returns the conditions of both, each once."""
        return Where(tuple(dict.fromkeys((*self.conditions, *other.conditions))))

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a row fits, given its values by column."""
        return all(condition.holds(row.get(condition.name)) for condition in self.conditions)

    def written(self) -> list[str]:
        """Returns the conditions as text, which is the same however they were written."""
        return sorted(map(str, self.conditions))


def parse_condition(text: str, names: Collection[str] = ()) -> Condition:
    """Reads a condition: a column, an operator, and a value or several.

    Args:
        text: such as `width>=256`, `caption~sea` or `lang in en,de`.
        names: columns that are known, whose names need no quotes whatever they hold.

    Raises:
        ValueError: it is none; the message says what was expected.
    """
    quoted = text
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(name) and _OPERATOR.match(text, len(name)):
            quoted = _in_quotes(name, '"') + text[len(name) :]
            break
    found = _CONDITION.fullmatch(quoted)
    if found is None or not (found["sign"] or found["word"]):
        raise ValueError(
            f"expected a condition as where: a column, one of {', '.join(OPERATORS)}, and a "
            f"value; {FORMS}. Got {text!r}"
        )
    bare = found["bare"]
    name = bare.strip() if bare else found["quoted"].replace('""', '"')
    operator = found["word"] or found["sign"].replace("==", "=")
    rest = found["rest"].strip()
    if operator == "in":
        for opening, closing in ("()", "[]"):
            if rest.startswith(opening) and rest.endswith(closing):
                rest = rest[1:-1]
        values = tuple(_values(rest, text))
    elif rest[:1] in ("'", '"'):
        values = tuple(_values(rest, text))
        if len(values) > 1:
            raise ValueError(f"{text!r} has several values: compare with them by 'in'")
    elif not rest or rest[0] in "<>=!~":
        raise ValueError(
            f"expected a value after {operator} in {text!r}, in quotes where it is empty or begins "
            f"with such a sign; {FORMS}"
        )
    elif _FURTHER.search(rest):
        raise ValueError(
            "expected one condition at a time; give each by itself, as all must hold, or the value "
            f"in quotes if it is text. Got {text!r}"
        )
    else:
        values = (_value(rest),)
    if not name:
        raise ValueError(f"expected the name of a column before {operator}. Got {text!r}")
    return Condition(name, operator, values)


def _values(rest: str, text: str) -> Iterator[Value]:
    place = 0
    while place < len(rest) or not place:
        found = _VALUE.match(rest, place)
        if found is None:
            raise ValueError(
                f"expected values with commas between them in {text!r}, in quotes where they hold "
                "a comma or are empty; a quote inside is doubled"
            )
        single, double, bare, end = found.groups()
        if bare is not None:
            yield _value(bare.strip())
        elif single is not None:
            yield Value(single.replace("''", "'"))
        else:
            yield Value(double.replace('""', '"'))
        place = found.end()
        if not end:
            return


def _value(text: str) -> Value:
    if not NUMBER.fullmatch(text):
        return Value(text)
    return Value(text, number_of(text))


def number_of(text: str) -> int | float | None:
    """Returns the number that a text is; None if it is none."""
    if not NUMBER.fullmatch(text.strip()):
        return None
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:  # of more digits than Python reads
        return float(text)


def _contains(found: str | bytes, text: str) -> bool:
    return text.lower() in _text(found).lower()


def _text(found: str | bytes) -> str:
    return found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else found


def _order(found: Any, value: Value) -> int | None:
    """Returns -1, 0 or 1 for less, equal and greater; None for values of different kinds."""
    if isinstance(found, bool):
        truth = TRUTH.get(value.text.lower())
        return None if truth is None else 0 if found == truth else 1 if found else -1
    if isinstance(found, str | bytes):
        found = _text(found)
        if value.number is None:
            return (found > value.text) - (found < value.text)
        found = number_of(found)
    number = value.number
    if found is None or number is None or not isinstance(found, int | float | decimal.Decimal):
        return None
    if isinstance(found, decimal.Decimal):
        number = _decimal(value.text, number)
    return (found > number) - (found < number)


def _decimal(text: str, number: int | float) -> decimal.Decimal | int | float:
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:  # an exponent beyond all decimals
        return number


_ORDERS = {
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
}


def _in_quotes(text: str, quote: str) -> str:
    return f"{quote}{text.replace(quote, quote + quote)}{quote}"
