"""The sections of a run, in the order of their worth, and their shares of the time."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.accelerator.cases import Case

# JAX would take most of a GPU's memory at its start, which the peers need, too.
NO_PREALLOCATION = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
PEERS = ("jax", "torch", "benchmarks.accelerator.peers")


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that are measured in a process of their own.

    Attributes:
        name: its number and its subject.
        module: whose `cases(tiny)` are the rows; its import takes no device.
        weight: its part of the time that is left when its turn comes, by the weights of those
            after it.
        environment: of its process.
        imports: what its process imports while it waits.
        uses_device: whether its process does; else each row has one of its own.
    """

    name: str
    module: str
    weight: float
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    imports: Sequence[str] = ()
    uses_device: bool = True

    @property
    def cases(self) -> Callable[[bool], list[Case]]:
        """Makes the cases; called with whether they are to be tiny."""
        return importlib.import_module(self.module).cases


def _section(name: str, module: str, weight: float, **options: Any) -> Section:
    return Section(name, f"benchmarks.accelerator.{module}", weight, **options)


_BESIDE_PEERS = {"environment": NO_PREALLOCATION, "imports": PEERS}
_JOBS = {"imports": ("jax", "pyarrow.parquet", "clip_jax.embed")}
# The weights are about the seconds that a run of nine minutes has for each.
SECTIONS = (
    _section("1 parity", "parity", 75, **_BESIDE_PEERS),
    _section("2 images", "images", 160, **_BESIDE_PEERS),
    _section("3 float32", "float32", 35, **_BESIDE_PEERS),
    _section("4 texts", "texts", 70, **_BESIDE_PEERS),
    _section("5 training", "training", 100, uses_device=False),
    _section("6 embedding job", "embedding", 70, **_JOBS),
    _section("7 search and probe", "searching", 25, **_JOBS),
    _section("8 first embedding", "first", 25, uses_device=False),
)


def section_of(module: str) -> Section:
    """The section of that module; one of another program is what its module's `SECTION` is."""
    for section in SECTIONS:
        if section.module == module:
            return section
    return importlib.import_module(module).SECTION
