"""Names that a package imports on first use (PEP 562).

`clip-jax --help` is fast because `import clip_jax` doesn't import jax. It doesn't import `typing`
either: until the command line has installed its signal handlers, Ctrl-C prints a traceback.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # True for type checkers
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any


def attach(
    package: str, names: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: the package's name.
        names: the re-exported names, each with the module of the package that defines it.
        modules: modules of the package to import on access as its attributes.
    """
    namespace = vars(importlib.import_module(package))
    rooms = frozenset(modules)

    def get(name: str) -> Any:
        if name in names:
            module = importlib.import_module(f"{package}.{names[name]}")
            # Stored, so that this function is called once per name. Modules need no such line:
            # importing one sets the attribute.
            namespace[name] = found = getattr(module, name)
            return found
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return sorted({*namespace, *names, *rooms})

    return get, list_names
