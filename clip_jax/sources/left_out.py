"""What of a source of pairs can't be used: named, counted, and refused past a share."""

from collections.abc import Container, Sequence

from clip_jax.messages import counted, some
from clip_jax.sources.where import Where

# So few don't stop a job, unless they are more than half: of little data, one is a large share.
FEW = 10


class LeftOut:
    """The samples of a source that can't be used, each with its reason.

    Attributes:
        problems: samples that are left out as a whole.
        damage: files whose rest can't be read; how many samples they hold isn't known.
        notes: what is left out of samples that are used, such as a second picture of one name.
        unchosen: how many samples don't fit the conditions; which is no fault of theirs.
    """

    def __init__(self, source: str, where: Where | None = None):
        """Starts with none."""
        self.source, self.where, self.unchosen = source, where or Where(), 0
        self.problems: list[str] = []
        self.damage: list[str] = []
        self.notes: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.problems or self.damage or self.notes)

    def all(self) -> list[str]:
        """Returns everything that is left out: damaged files, samples, and parts of samples."""
        return [*self.damage, *self.problems, *self.notes]

    def check(self, usable: int, num_files: int, max_skipped: float) -> None:
        """Refuses a source of which too much can't be used.

        Args:
            usable: how many samples can be.
            num_files: how many files the source has.
            max_skipped: the share of samples, and of files, that may be left out; a few samples
                may be whatever the share, unless it is 0.

        Raises:
            ValueError: it is more, or nothing can be used; lists the first of all problems.
        """
        lost = [*self.damage, *self.problems]
        if not usable and not lost and self.unchosen:
            raise ValueError(f"{self.source}: no sample fits where {self.where}")
        if not usable or not max_skipped:
            refuse(self.source, lost)
            return
        total = usable + len(self.problems)
        if len(self.problems) > max(max_skipped * total, min(FEW, total // 2)):
            count, of = len(self.problems), f"{total:,} samples"
        elif len(self.damage) > max_skipped * num_files:
            count, of = len(self.damage), f"{num_files:,} files"
        else:
            return
        raise ValueError(
            f"{self.source}: {count:,} of {of} can't be used, more than the share of "
            f"{max_skipped:g} that max_skipped admits:\n{some(lost, between=chr(10))}"
        )

    def choice(self) -> str:
        """Returns the sentence that tells how many samples don't fit; empty if there is no choice.

        It has no place among the faults.
        """
        if not self.where:
            return ""
        return f"{self.unchosen:,} samples of {self.source} don't fit where {self.where}"

    def __str__(self) -> str:
        """The sentences for those who use the rest; empty if nothing is left out."""
        found = self.all()
        if not found:
            return self.choice()
        what = "sample" if self.problems and not self.damage else "thing"
        first = some(found, most=3, between="; ")
        told = f"left out of {self.source}: {counted(len(found), what)}: {first}"
        return "\n".join(filter(None, (told, self.choice())))


def refuse(source: str, problems: Sequence[str]) -> None:
    """Raises a ValueError that lists the first of some problems, if there are any."""
    if not problems:
        return
    shown = some(problems, between="\n")
    raise ValueError(f"{source}: {counted(len(problems), 'problem')}:\n{shown}")


def distinct(key: str, seen: Container[str], where: str) -> str:
    """Returns a key that isn't among those seen: keys may start anew in each file of a source.

    Args:
        key: the key as it is in the file.
        seen: a container of keys.
        where: the file, and the row where it has none but numbers.
    """
    while key in seen:
        key = f"{where}/{key}"
    return key
