"""The parameters and buffers of a TorchScript module, by their paths.

The pickle has all attributes of each module alike. Which of them are parameters and buffers, and so
belong to its state dictionary, only the code of its class says, which is read as text.
"""

import re
from collections.abc import Iterator
from typing import Any

from clip_jax.convert.archive import Archive, shown
from clip_jax.convert.checks import MAX_NAME_LENGTH, check_count
from clip_jax.convert.pickled import Record, Tensor
from clip_jax.errors import CheckpointError

# Sizes that the root of OpenAI's archives has, which some have as plain integers.
SIZES = ("input_resolution", "context_length", "vocab_size")

_MAX_DEPTH = 64
_MAX_CODE_BYTES = 32 << 20  # the official archives have a megabyte
_CLASS = re.compile(
    r"^class (\w+)\(.*\):\n"
    r"  __parameters__ = \[(.*)\]\n"
    r"  __buffers__ = \[(.*)\]$",
    re.MULTILINE,
)


def module_values(archive: Archive, root: Record) -> dict[str, Any]:
    """Returns the parameters and buffers of a module and its children by path, and its sizes.

    Other attributes are settings of layers, which PyTorch's own state_dict() doesn't contain
    either. Where an archive has no code, all tensors count.
    """
    return dict(_values("", root, [0], _Code(archive)))


class _Code:
    """The names of parameters and buffers that the code of an archive declares for each class."""

    def __init__(self, archive: Archive):
        self._archive, self._left = archive, _MAX_CODE_BYTES
        self._files: dict[str, dict[str, frozenset[str]]] = {}

    def declared(self, class_name: str) -> frozenset[str] | None:
        """Returns the names for a class; None if there is no code of it."""
        module, _, name = class_name.rpartition(".")
        if module not in self._files:
            self._files[module] = self._read(f"code/{module.replace('.', '/')}.py")
        return self._files[module].get(name)

    def _read(self, entry: str) -> dict[str, frozenset[str]]:
        if entry not in self._archive:
            return {}
        code = self._archive.unpacked(entry, self._left)
        self._left -= len(code)
        text = code.decode("utf-8", "replace")
        return {
            match[1]: frozenset(re.findall(r'"([^"]*)"', f"{match[2]} {match[3]}"))
            for match in _CLASS.finditer(text)
        }


def _values(
    prefix: str, record: Record, count: list[int], code: _Code, depth: int = 0
) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise CheckpointError(
            f"nests modules more than {_MAX_DEPTH} deep at {shown(prefix)}, expected a tree of "
            f"modules: the file was tampered with, get it from its source again"
        )
    declared = code.declared(record.class_name)
    for name, value in (record.state or {}).items():
        # With nested shared modules the number of paths can grow exponentially.
        count[0] += 1
        check_count(count[0])
        if (
            not isinstance(name, str)
            or not name
            or "." in name
            or len(prefix + name) > MAX_NAME_LENGTH
        ):
            raise CheckpointError(
                f"has an attribute called {shown(str(name))} in module {shown(prefix) or 'root'}, "
                f"expected a Python name: the file is damaged, get it from its source again"
            )
        if isinstance(value, Record):
            yield from _values(f"{prefix}{name}.", value, count, code, depth + 1)
        elif isinstance(value, Tensor):
            if declared is None or name in declared:
                yield prefix + name, value
        elif depth == 0 and name in SIZES and type(value) is int:
            yield prefix + name, value
