"""Pairs from a folder in which each picture has its caption in a file of the same name."""

import os
from pathlib import Path

from clip_jax.sources.datasets import is_statistics
from clip_jax.sources.left_out import LeftOut
from clip_jax.sources.records import IMAGES, Pair
from clip_jax.sources.table import PictureFile
from clip_jax.sources.tar_index import MOST_OF_A_TEXT, Group
from clip_jax.storage import Disk

# Suffixes of the files that hold captions, the first of which counts.
TEXTS = ("txt", "json")


class NoPairs(ValueError):
    """A folder has no picture with a caption beside it."""


class FolderPairs:
    """The pictures of a folder and its subfolders that have a caption.

    The caption of `a/b.jpg` is the text in `a/b.txt`; or `caption` or `captions` in `a/b.json`. The
    key is the path within the folder. Hidden files don't count.

    Attributes:
        left_out: pictures without a caption, and captions without a picture.
    """

    def __init__(self, folder: str | os.PathLike[str], *, max_skipped: float = 0.0):
        """Reads the captions, but no picture.

        Args:
            folder: a local folder.
            max_skipped: the share of pictures and captions that may be faulty.

        Raises:
            ValueError: there are no pictures with captions, or too many lack one; lists the
                problems.
            OSError: the folder or a caption can't be read.
        """
        self._folder = Path(folder)
        self._pairs: list[tuple[str, tuple[str, ...]]] = []
        self.left_out = LeftOut(os.fspath(folder))
        pictures: list[str] = []
        texts: dict[str, str] = {}
        for name, found in Disk().walk(os.fspath(folder)):
            if isinstance(found, str):
                self.left_out.damage.append(f"{name}: {found}")
                continue
            if is_statistics(name) or any(part.startswith(".") for part in name.split("/")):
                continue
            if name.rpartition(".")[2].lower() in IMAGES:
                pictures.append(name)
            add_text(texts, name)
        with_picture = {name.rpartition(".")[0] for name in pictures}
        if not with_picture & texts.keys():
            raise NoPairs(
                f"{os.fspath(folder)}: no table of captions; expected captions.csv, .tsv, .jsonl "
                f"or .parquet; or pictures with their captions beside them, such as a.jpg and "
                f"a.txt. Shards are given as a pattern, such as '*.tar'"
            )
        for name in sorted(pictures):
            try:
                self._pairs.append((name, self._read(texts.get(name.rpartition(".")[0]))))
            except ValueError as error:
                self.left_out.problems.append(f"{name}: {error}")
        for stem in sorted(texts.keys() - with_picture):
            self.left_out.problems.append(f"{texts[stem]}: no picture of this name beside it")
        self.left_out.check(len(self), 1, max_skipped)

    def __len__(self) -> int:
        return len(self._pairs)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._pairs[index][1]

    def key(self, index: int) -> str:
        return self._pairs[index][0]

    def picture(self, index: int) -> object:
        return self._pairs[index][0]

    def size(self, index: int) -> int:
        return self._file(index).size

    def __getitem__(self, index: int) -> Pair:
        key, captions = self._pairs[index]
        return Pair(key, self._file(index).read(), captions)

    def _file(self, index: int) -> PictureFile:
        return PictureFile(self._folder / self._pairs[index][0])

    def _read(self, name: str | None) -> tuple[str, ...]:
        """Returns the captions in a file; raises ValueError if there are none."""
        if name is None:
            raise ValueError("no caption beside it")
        data = Disk().read_range(str(self._folder / name), 0, MOST_OF_A_TEXT)
        return captions_in(name, data)


def add_text(texts: dict[str, str], name: str) -> None:
    """Adds a file to those that hold captions, by its name without the suffix, if it is one."""
    stem, _, suffix = name.rpartition(".")
    if suffix.lower() in TEXTS and (stem not in texts or suffix.lower() == TEXTS[0]):
        texts[stem] = name


def captions_in(name: str, data: bytes) -> tuple[str, ...]:
    """Returns the captions in a .txt or .json file, as of a shard's members.

    Raises:
        ValueError: there are none.
    """
    is_text = name.rpartition(".")[2].lower() == TEXTS[0]
    return (Group(txt=data) if is_text else Group(json=data)).captions()
