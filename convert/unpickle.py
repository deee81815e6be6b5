"""A safe reader of the pickles in checkpoints, which executes nothing.

A pickle is a program for a stack machine, and Python's own machine is hard to restrict: it imports,
calls and sets attributes on whatever is on its stack, hashes nested tuples until the C stack
overflows or practically forever, and allocates a memo as large as an opcode demands. So this is a
machine of our own for the instructions that checkpoints need. Its stack holds plain values and the
inert records of `pickled`; a global is a pair of strings; "calling" one is a branch of
`pickled.call`.
"""

import copyreg
import pickletools
from typing import Any, BinaryIO

from clip_jax.convert.archive import shown
from clip_jax.convert.checks import DAMAGED, numbers
from clip_jax.convert.pickled import (
    Global,
    Opaque,
    Storage,
    admit,
    as_int,
    build,
    call,
    expect,
    make,
    persistent,
    set_items,
)
from clip_jax.errors import CheckpointError

# A checkpoint takes about 25 instructions per tensor. An instruction can be a single byte, so a
# pickle has room for more than anybody would wait for.
MAX_INSTRUCTIONS = 4_000_000


def load(data: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads a checkpoint's pickle to plain values and the records of `pickled`.

    Args:
      data: the pickle; or a file, whose position is behind the pickle afterwards.
      storages: gets each storage that is mentioned, by its key, which must always mean the same.

    Raises:
      CheckpointError: it is malformed, or needs more than a checkpoint does; the message names the
        first global that is not admitted.
    """
    try:
        return _run(data, storages)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # opcodes that don't fit together raise errors of any kind
        raise CheckpointError(
            f"has no well-formed pickle ({type(error).__name__}: "
            f"{shown(str(error))}), expected one as PyTorch writes it: the file is damaged or was "
            f"never a checkpoint, get it from its source again"
        ) from None


def _run(data: bytes | BinaryIO, storages: dict[str, Storage] | None) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each open MARK
    memo: dict[int, Any] = {}

    def pop_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if number == MAX_INSTRUCTIONS:
            raise CheckpointError(
                f"has more than {MAX_INSTRUCTIONS:,} instructions in its pickle, expected some 25 "
                f"a tensor: this is no ordinary checkpoint, check that it is the right file"
            )
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT":
                memo[as_int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[as_int(argument)])
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                ("BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT")
                | ("BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8")
                | ("BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8")
                | ("BINSTRING" | "SHORT_BINSTRING" | "LONG4")  # strings of Python 2
            ):
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                if len(stack) < size:
                    raise ValueError("stack underflow")
                stack[-size:] = [tuple(stack[-size:])]
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items = pop_mark()
                stack.append(tuple(items))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                if not isinstance(stack[-1], Opaque):
                    expect(stack[-1], list).append(item)
            case "APPENDS":
                items = pop_mark()
                if not isinstance(stack[-1], Opaque):
                    expect(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Opaque("set"))
            case "ADDITEMS":
                pop_mark()
                expect(stack[-1], Opaque)
            case "FROZENSET":
                pop_mark()
                stack.append(Opaque("frozenset"))
            case "BYTEARRAY8":
                stack.append(Opaque("bytearray"))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                if not isinstance(stack[-1], Opaque):
                    set_items(expect(stack[-1], dict), [(key, value)])
            case "SETITEMS":
                items = pop_mark()
                if not isinstance(stack[-1], Opaque):
                    set_items(expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(admit(Global(module, name)))
            case "STACK_GLOBAL":
                name, module = expect(stack.pop(), str), expect(stack.pop(), str)
                stack.append(admit(Global(module, name)))
            case "BINPERSID":
                found = persistent(stack.pop())
                if isinstance(found, Storage) and storages is not None:
                    _note(found, storages)
                stack.append(found)
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(call(expect(function, Global), expect(arguments, tuple)))
            case "NEWOBJ":
                arguments, cls = stack.pop(), expect(stack.pop(), Global)
                stack.append(make(cls, expect(arguments, tuple)))
            case "NEWOBJ_EX":
                _, arguments, cls = stack.pop(), stack.pop(), expect(stack.pop(), Global)
                if cls.is_modelled:
                    raise TypeError(f"an object of {cls} with named arguments")
                stack.append(make(cls, expect(arguments, tuple)))
            case "BUILD":
                state = stack.pop()
                build(stack[-1], state)
            case "STOP":
                (result,) = stack
                if below:
                    raise ValueError("stopped inside a MARK")
                return result
            case refused:
                raise CheckpointError(
                    f"refused opcode {refused}{_named(refused, argument)} at byte {position} of "
                    f"its pickle, expected only what PyTorch writes: don't open this file with "
                    f"other tools either unless you trust its source"
                )
    raise ValueError("no STOP")


def _note(storage: Storage, storages: dict[str, Storage]) -> None:
    known = storages.setdefault(storage.key, storage)
    if (known.dtype, known.count) != (storage.dtype, storage.count):
        raise CheckpointError(
            f"has storage {shown(storage.key)} as {numbers((known.count,))} {known.dtype} elements "
            f"and as {numbers((storage.count,))} {storage.dtype} ones, expected one of them: "
            f"{DAMAGED}"
        )


def _named(opcode: str, argument: Any) -> str:
    """Returns the global that a refused opcode names, for the message; empty if none."""
    if opcode.startswith("EXT"):
        # An extension code is a global that some library has registered in this process.
        known = getattr(copyreg, "_inverted_registry", {}).get(argument)
        return f" ({shown('.'.join(known))})" if known else f" (extension code {argument})"
    return f" ({shown(argument.replace(' ', '.'))})" if opcode == "INST" else ""
