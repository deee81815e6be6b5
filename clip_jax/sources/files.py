"""A file of the input, with its size and times as listed, to find out whether it has changed."""

import os
from collections.abc import Sequence

from clip_jax.storage import absolute, storage


class ListedFile:
    """A file of rows, whose version is its size and times, or its ETag.

    Attributes:
        name: the name of the file, without its folder.
        path: the path of the file.
        stat: its size and version when it was listed.
    """

    def __init__(self, path: str):
        """Gets the file's size and times; reads nothing of it."""
        self.name, self.path = os.path.basename(path), absolute(path)
        self.stat = storage(path).stat(path)

    def stamp(self, rows: Sequence[int]) -> str | None:
        """Returns the version of the file, the same for any rows; None if unknown."""
        return self.stat.stamp

    def files(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of the files that hold the rows: this file's."""
        return [self.path]

    def has_changed(self) -> bool:
        """Whether it was written since it was listed.

        Raises:
            OSError: the file can't be examined now.
        """
        # All times: a program may reset the modification time. After a mere touch the rows are
        # compared.
        return storage(self.path).stat(self.path, fresh=True) != self.stat
