"""A file of the input as it was when the input was listed, and whether it still is."""

import os
from collections.abc import Sequence

from clip_jax.storage import absolute, storage


class ListedFile:
    """A file of rows, which nothing but a look at it tells from what it was before.

    Attributes:
        name: of the file, without its folder.
        path: of the file.
        stat: its size, times and the like, as it is listed.
    """

    def __init__(self, path: str):
        """Looks at the file, and reads nothing of it."""
        self.name, self.path = os.path.basename(path), absolute(path)
        self.stat = storage(path).stat(path)

    def stamp(self, rows: Sequence[int]) -> str | None:
        """What tells the file from what it was before; any rows have the same."""
        return self.stat.stamp

    def files(self, rows: Sequence[int]) -> list[str]:
        """The paths of what holds the rows: the file's own."""
        return [self.path]

    def has_changed(self) -> bool:
        """Whether it was written since it was listed.

        Raises:
            OSError: that can't be told now.
        """
        # All times: who writes in place may set back that of modification. A mere touch shows, too,
        # and the rows are compared then.
        return storage(self.path).stat(self.path, fresh=True) != self.stat
