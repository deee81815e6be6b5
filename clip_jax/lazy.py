"""Names that a package imports when they are first asked for (PEP 562).

`clip-jax --help` answers at once because `import clip_jax` doesn't import jax; nor does it import
`typing`: until the command line has its handlers, Ctrl-C is Python's, with a traceback.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # tools take it for true
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any


def attach(
    package: str, names: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        names: what it re-exports, and the module of the package that has it.
        modules: modules of the package that are its attributes without having been imported.
    """
    namespace = vars(importlib.import_module(package))
    rooms = frozenset(modules)

    def get(name: str) -> Any:
        if name in names:
            module = importlib.import_module(f"{package}.{names[name]}")
            # Kept, so that this function is called once for a name. A module becomes an attribute
            # of its package by being imported.
            namespace[name] = found = getattr(module, name)
            return found
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return sorted({*namespace, *names, *rooms})

    return get, list_names
