"""How counts and long lists are said in messages, the same everywhere."""

from collections.abc import Iterable

# Of a longer list the first ones are named, and how many more there are.
MOST = 10


def counted(count: int, what: str) -> str:
    """A count with its noun.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def some(items: Iterable[object], most: int = MOST, between: str = ", ") -> str:
    r"""A list for a message: all of it, or its first items and how many more there are.

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
