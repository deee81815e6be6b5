"""Takes typed values out of another library's JSON and gathers what is wrong with all of them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from clip_jax.config_fields import MAX_NUMBER
from clip_jax.convert.archive import shown
from clip_jax.convert.checks import MAX_TOLD
from clip_jax.errors import CheckpointError
from clip_jax.messages import some


def raise_problems(problems: Sequence[str], heading: str = "the configuration is not read") -> None:
    """Raises CheckpointError with all problems, if there are any."""
    if problems:
        each = dict.fromkeys(problems)  # a field may be taken twice
        raise CheckpointError(f"{heading}: {some(each, MAX_TOLD, '; ')}")


class Fields(Mapping[str, Any]):
    """A JSON object whose wrong values become problems; a stand-in is then returned.

    Attributes:
        where: the object's name in messages.
        problems: where problems are added.
    """

    def __init__(self, document: Any, where: str, problems: list[str]):
        self.where, self.problems = where, problems
        if not isinstance(document, Mapping):
            problems.append(f"{where}: expected an object. Got {_told(document)}")
            document = {}
        self._document: Mapping[str, Any] = document

    def __getitem__(self, name: str) -> Any:
        return self._document[name]

    def __iter__(self):
        return iter(self._document)

    def __len__(self) -> int:
        return len(self._document)

    def problem(self, name: str, what: str) -> None:
        """Notes what is wrong with a field."""
        self.problems.append(f"{self.where}.{name}: {what}")

    def check_known(self, known: Collection[str]) -> None:
        """Notes keys that are not known."""
        for name in self:
            if name not in known:
                what = "unknown, and may change the model: take it out if it doesn't"
                self.problem(shown(str(name)), what)

    def refuse(self, refused: Mapping[str, str], instead: str) -> None:
        """Notes keys that are set to more than false or null, each with what it means."""
        for name, what in refused.items():
            if value := self.get(name):
                self.problem(name, f"{what} ({_told(value)}) is not supported: {instead}")

    def inner(self, name: str, default: Any = None) -> "Fields":
        """Returns an object within this one; its default stands for null too."""
        value = self.get(name)
        value = default if value is None and default is not None else value
        return Fields(value, f"{self.where}.{name}", self.problems)

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns a whole number; 0 after a problem."""
        value = self.get(name, default)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and least <= value <= MAX_NUMBER:
            return value
        wanted = "positive" if least else "not negative"
        self.problem(name, f"expected a whole number, {wanted}. Got {_told(value)}")
        return 0

    def number(self, name: str, default: float | None) -> float | None:
        """Returns a finite number, or the default for null; the default after a problem."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and abs(value) <= MAX_NUMBER:
            return float(value)
        self.problem(name, f"expected a finite number. Got {_told(value)}")
        return default

    def flag(self, name: str, default: bool) -> bool:
        """Returns true or false; the default for null, and after a problem."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.problem(name, f"expected true or false. Got {_told(value)}")
        return default

    def text(self, name: str, default: str | None) -> str | None:
        """Returns text, or the default for null; the default after a problem."""
        value = self.get(name)
        if value is None or (isinstance(value, str) and value.isprintable() and len(value) < 1000):
            return default if value is None else value
        self.problem(name, f"expected text. Got {_told(value)}")
        return default

    def choice(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """Returns what a choice stands for; that of the default for null and after a problem."""
        value = self.get(name)
        if value is None or (isinstance(value, str) and value in choices):
            return choices[default if value is None else value]
        self.problem(name, f"expected one of {', '.join(choices)}. Got {_told(value)}")
        return choices[default]

    def color(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Returns three numbers, or the default for null; the default after a problem."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, list | tuple) and len(value) == 3:
            numbers = Fields(dict(zip("012", value, strict=True)), f"{self.where}.{name}", [])
            red, green, blue = (numbers.number(place, None) for place in "012")
            if red is not None and green is not None and blue is not None and not numbers.problems:
                return red, green, blue
        self.problem(name, f"expected three numbers. Got {_told(value)}")
        return default

    def built(self, kind: type, *arguments: Any, **options: Any) -> Any:
        """Builds a configuration; None, and a problem, if its values don't fit each other.

        After earlier problems nothing is built, as stand-ins would only cause more.
        """
        if self.problems:
            return None
        try:
            return kind(*arguments, **options)
        except ValueError as error:
            self.problems.append(f"{self.where}: {str(error).rstrip('.')}")
            return None


def _told(value: Any) -> str:
    return shown(repr(value)) if isinstance(value, str | int | float | None) else _kind(value)


def _kind(value: Any) -> str:
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
