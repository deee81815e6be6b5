"""A cache of limited size, which forgets what was not used for the longest time."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Values by key; threads may share it."""

    def __init__(self, most: int, size: Callable[[Any], int] = lambda value: 1):
        """Starts empty.

        Args:
            most: the sum of the sizes that is kept.
            size: the size of a value.
        """
        self._most, self._size, self._sum = most, size, 0
        self._values: collections.OrderedDict[Hashable, Value] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """Returns a value; None if it isn't there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Keeps a value."""
        with self._lock:
            if key in self._values:
                self._sum -= self._size(self._values.pop(key))
            self._values[key] = value
            self._sum += self._size(value)
            while self._sum > self._most:
                self._sum -= self._size(self._values.popitem(last=False)[1])
