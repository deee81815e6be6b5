"""A safe reader of the pickles in checkpoints, which executes nothing.

A pickle is a program for a stack machine, and Python's own machine is hard to restrict: it imports,
calls and sets attributes on whatever is on its stack, hashes nested tuples until the C stack
overflows or practically forever, and allocates a memo as large as an opcode demands. So this is a
machine of our own for the instructions that PyTorch writes. Its stack holds plain values and the
inert records below; a global is a pair of strings; "calling" one is a branch of `_call`.
"""

import copyreg
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from clip_jax.convert.archive import shown
from clip_jax.errors import CheckpointError

STORAGES = {
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# All globals that a checkpoint may name, besides module classes (`__torch__...`). Each has a branch
# in `_call`; none is ever imported.
ADMITTED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        # Values that modules have beside their tensors: TorchScript types its lists and
        # dictionaries, and any module may hold a shape or a device.
        ("torch.jit._pickle", "build_intlist"),
        ("torch.jit._pickle", "build_doublelist"),
        ("torch.jit._pickle", "build_boollist"),
        ("torch.jit._pickle", "build_tensorlist"),
        ("torch.jit._pickle", "restore_type_tag"),
        ("torch", "Size"),
        ("torch", "device"),
        *(("torch", name) for name in STORAGES),
    }
)

# Bounds on values that a pickle can mention once and use a million times.
MAX_DIMENSIONS = 64  # numpy's limit, and PyTorch's
MAX_KEY_LENGTH = 64  # PyTorch numbers its storages
MAX_CLASS_LENGTH = 1_000
# A checkpoint takes about 25 instructions per tensor. An instruction can be a single byte, so a
# pickle has room for more than anybody would wait for.
MAX_INSTRUCTIONS = 4_000_000

Key = str | int


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle mentions, which is compared but never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")

    @property
    def is_module_class(self) -> bool:
        """Whether TorchScript generated this class for a module of the saved model."""
        return self.module == "__torch__" or self.module.startswith("__torch__.")


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A flat array of `count` elements in the entry `data/<key>`."""

    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A strided view of a storage, in elements. The numbers are from the file, not checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Record:
    """A TorchScript module's attributes, without its behaviour."""

    class_name: str
    state: dict[Key, Any] | None = None


def load(data: bytes) -> Any:
    """Reads a checkpoint's pickle to plain values and the records above.

    Raises:
      CheckpointError: it is malformed, or needs more than a checkpoint does; the message names the
        first global that is not admitted.
    """
    try:
        return _run(data)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # opcodes that don't fit together raise errors of any kind
        raise CheckpointError(
            f"data.pkl is not a well-formed pickle ({type(error).__name__}: "
            f"{shown(str(error))}), expected one as PyTorch writes it: the file is damaged or was "
            f"never a checkpoint, get it from its source again"
        ) from None


def _run(data: bytes) -> Any:
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
                f"has more than {MAX_INSTRUCTIONS:,} instructions in data.pkl, expected some 25 a "
                f"tensor: this is no ordinary checkpoint, check that it is the right file"
            )
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT":
                memo[_int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[_int(argument)])
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case (
                ("BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT")
                | ("BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8")
                | ("BINBYTES" | "SHORT_BINBYTES")
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
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = pop_mark()
                _expect(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(_expect(stack[-1], dict), [(key, value)])
            case "SETITEMS":
                items = pop_mark()
                _set(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                module, _, name = str(argument).partition(" ")
                stack.append(_admit(Global(module, name)))
            case "STACK_GLOBAL":
                name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(_admit(Global(module, name)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(_expect(function, Global), _expect(arguments, tuple)))
            case "NEWOBJ":
                arguments, cls = stack.pop(), _expect(stack.pop(), Global)
                if arguments != () or not cls.is_module_class:
                    raise CheckpointError(
                        f"refused to create an object of {cls} in data.pkl, expected modules only: "
                        f"get the file from its source again"
                    )
                stack.append(Record(str(cls)))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "STOP":
                (result,) = stack
                if below:
                    raise ValueError("stopped inside a MARK")
                return result
            case refused:
                raise CheckpointError(
                    f"refused opcode {refused}{_named(refused, argument)} at byte {position} of "
                    f"data.pkl, expected only what PyTorch writes: don't open this file with other "
                    f"tools either unless you trust its source"
                )
    raise ValueError("no STOP")


def _named(opcode: str, argument: Any) -> str:
    """Returns the global that a refused opcode names, for the message; empty if none."""
    if opcode.startswith("EXT"):
        # An extension code is a global that some library has registered in this process.
        known = getattr(copyreg, "_inverted_registry", {}).get(argument)
        return f" ({shown('.'.join(known))})" if known else f" (extension code {argument})"
    return f" ({shown(argument.replace(' ', '.'))})" if opcode == "INST" else ""


def _admit(found: Global) -> Global:
    if (found.module, found.name) in ADMITTED:
        return found
    if found.is_module_class and len(found.module) + len(found.name) <= MAX_CLASS_LENGTH:
        return found
    is_storage = found.module == "torch" and found.name.endswith("Storage")
    # Tensors of other dtypes, and sparse, quantised or nested ones.
    is_tensor = found.module == "torch._utils" and re.fullmatch(r"_rebuild_\w+", found.name)
    if is_storage or is_tensor:
        raise CheckpointError(
            f"refused global {found}: expected plain tensors of type {', '.join(STORAGES)}; load "
            f"the file in PyTorch, convert the others (.float(), .to_dense(), .dequantize()) and "
            f"save it again"
        )
    raise CheckpointError(
        f"refused global {found}: a checkpoint needs tensors, dictionaries and numbers only; if "
        f"you trust this file, load it in PyTorch and torch.save just its state_dict()"
    )


def _call(function: Global, arguments: tuple[Any, ...]) -> Any:
    # All values copied here have a bounded size: a memoised argument can be passed a million times.
    if len(arguments) > 8:
        raise ValueError(f"{function} called with {len(arguments)} arguments")
    match function.name, arguments:
        case "OrderedDict", ():
            return {}
        case "_rebuild_tensor_v2", (storage, offset, shape, strides, _, _, *metadata):
            # The seventh marks a lazy negation or conjugate of the storage.
            if len(metadata) > 1 or any(metadata):
                raise CheckpointError(
                    "holds a tensor that is a negative or conjugate view, expected plain ones: "
                    "load it in PyTorch, call resolve_neg() or resolve_conj(), and save it again"
                )
            return Tensor(_expect(storage, Storage), _int(offset), _ints(shape), _ints(strides))
        case "_rebuild_parameter", (Tensor() as tensor, _, _):
            return tensor
        case (
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist",
            (list(items),),
        ):
            return items
        case "restore_type_tag", (value, str()):
            return value
        case "Size", (tuple(sizes),):
            return _ints(sizes)
        case "device", (str(kind), *_):
            return kind
    raise CheckpointError(
        f"refused to call {function} with {len(arguments)} arguments of types "
        f"({shown(', '.join(type(a).__name__ for a in arguments[:8]))}) in data.pkl: PyTorch "
        f"doesn't write this, get the file from its source again"
    )


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Record) and target.state is None and type(state) is dict:
        target.state = state
    elif type(target) is dict and type(state) is dict:
        pass  # a state dictionary's `_metadata`: module versions, nothing about the arrays
    else:
        raise CheckpointError(
            f"refused to set state of type {type(state).__name__} on a {type(target).__name__} in "
            f"data.pkl, expected a dictionary on a module (quantised modules are not read)"
        )


def _storage(pid: Any) -> Storage:
    match pid:
        case ("storage", Global("torch", kind), str(key), str(), count) if (
            kind in STORAGES and len(key) <= MAX_KEY_LENGTH
        ):
            return Storage(STORAGES[kind], key, _int(count))
    raise CheckpointError(
        "has a malformed storage reference in data.pkl, expected ('storage', a torch storage "
        "type, key, location, element count): the file is damaged, get it from its source again"
    )


def _set(target: dict[Key, Any], items: Any) -> None:
    for key, value in items:
        # Hashing anything else may recurse without end or take exponential time.
        if type(key) is not str and not (type(key) is int and key.bit_length() < 64):
            raise TypeError(f"a dictionary key of type {type(key).__name__}")
        if key in target:
            raise CheckpointError(
                f"has duplicate entries for {shown(str(key))} in data.pkl, expected each name "
                f"once: the file was tampered with, get it from its source again"
            )
        target[key] = value


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _int(value: Any) -> int:
    return _expect(value, int)


def _ints(values: Any) -> tuple[int, ...]:
    if len(_expect(values, tuple)) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(values)} dimensions")
    return tuple(_int(value) for value in values)
