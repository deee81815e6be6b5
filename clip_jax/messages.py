"""Counts, lists and differences in messages, phrased the same everywhere."""

from collections.abc import Iterable, Mapping

# How many items of a list are shown.
MOST = 10


def counted(count: int, what: str) -> str:
    """Formats a count with its noun.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def some(items: Iterable[object], most: int = MOST, between: str = ", ") -> str:
    r"""Formats a list for a message: all of it, or its first items and the number of the others.

    Example:
        >>> some([3, 5, 7, 9], most=2)
        '3, 5 and 2 more'
        >>> some(["- a", "- b", "- c"], most=1, between="\n")
        '- a\nand 2 more'
    """
    texts = [str(item) for item in items]
    rest = len(texts) - most
    if rest <= 0:
        return between.join(texts)
    joint = between if between.endswith(("\n", "; ")) else " "
    return f"{between.join(texts[:most])}{joint}and {rest:,} more"


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Describes how two sets of named values differ, one line per name.

    Example:
        >>> differences({"seed": 0, "epochs": 3}, {"seed": 1, "epochs": 3})
        ['- seed: there 0, here 1']
        >>> differences({}, {"decode": "fast"})
        ["- decode: there not given, here 'fast'"]
    """
    lines = []
    for name in sorted(there.keys() | here.keys()):
        one, other = (repr(side[name]) if name in side else "not given" for side in (there, here))
        if one != other:
            lines.append(f"- {name}: there {one}, here {other}")
    return lines
