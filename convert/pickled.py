"""The values that a checkpoint's pickle may describe, and what calling its globals comes to.

A global is a pair of strings. What PyTorch calls to describe tensors has a branch in `call`; any
other class or function gives an opaque value, which says what it would have been. Nothing is looked
up, imported or called, so nothing has to be trusted. What would act on the machine of whoever
unpickles the file is refused all the same: such a file is an attack on somebody.
"""

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

# The globals that have a branch in `call`, and the storages. Besides them module classes
# (`__torch__...`) have a meaning.
MODELLED = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor"),  # before PyTorch 0.4
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

# Modules whose functions run programs or code, open files, or reach the network.
_ACTING = frozenset(
    """
    os posix nt sys subprocess commands shutil pty runpy importlib pkgutil zipimport imp ctypes
    _ctypes cffi pickle _pickle cPickle dill cloudpickle joblib marshal shelve code codeop pdb bdb
    profile cProfile trace timeit doctest atexit signal socket _socket ssl asyncio multiprocessing
    threading _thread concurrent http httplib urllib urllib2 requests ftplib smtplib webbrowser
    operator _operator inspect io _io tempfile fileinput glob pip ensurepip venv site platform
    """.split()
)
_BUILTINS = frozenset({"builtins", "__builtin__"})
# Python's own classes of plain values; its other built-in functions include eval and open.
_PLAIN = frozenset(
    """
    bool bytearray bytes complex dict Ellipsis float frozenset int list long NotImplemented object
    range set slice str tuple type unicode xrange
    """.split()
)
# NumPy's ways to make generators of random numbers, which scripts save with their state.
_GENERATORS = {
    "numpy.random._pickle": {"__generator_ctor", "__bit_generator_ctor", "__randomstate_ctor"},
    "numpy.random.bit_generator": {"__pyx_unpickle_SeedSequence"},
}
_DTYPES = re.compile(r"(b?float|u?int|complex|q?u?int|bits)\d+\w*|bool|strided|sparse_\w+")

# Bounds on values that a pickle can mention once and use a million times.
MAX_DIMENSIONS = 64  # numpy's limit, and PyTorch's
MAX_KEY_LENGTH = 64  # PyTorch numbers its storages
MAX_CLASS_LENGTH = 1_000

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

    @property
    def is_modelled(self) -> bool:
        """Whether this name means something here."""
        return (self.module, self.name) in MODELLED or self.is_module_class


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Elements of the flat array of a file that has this key.

    Attributes:
        dtype: the dtype of its elements.
        key: the name by which the file has its bytes.
        count: how many elements the whole array has.
        window: the first element and the number of elements that are meant; all by default.
    """

    dtype: np.dtype
    key: str
    count: int
    window: tuple[int, int] | None = None


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


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A value that isn't read, such as NumPy's numbers and a script's settings.

    Attributes:
        maker: the class or function that Python would have called to make it.
    """

    maker: Global | str


def kind_of(value: Any) -> str:
    """Returns the name of a value's class, for messages."""
    return str(value.maker) if isinstance(value, Opaque) else type(value).__name__


def admit(found: Global) -> Global:
    """Returns a global that may be mentioned.

    Raises:
        CheckpointError: it would act on a machine, or make a tensor of a kind that isn't read.
    """
    if found.is_modelled and len(found.module) + len(found.name) <= MAX_CLASS_LENGTH:
        return found
    if found.name in _GENERATORS.get(found.module, ()):
        return found
    root, _, _ = found.module.partition(".")
    is_torch = root == "torch"
    # Tensors of other dtypes, and sparse, quantised or nested ones.
    is_tensor = is_torch and (
        found.name.endswith("Storage") or re.fullmatch(r"_rebuild_\w+", found.name)
    )
    if is_tensor:
        raise CheckpointError(
            f"refused global {found}: expected plain tensors of type {', '.join(STORAGES)}; load "
            f"the file in PyTorch, convert the others (.float(), .to_dense(), .dequantize()) and "
            f"save it again"
        )
    last = found.name.rpartition(".")[2]
    is_acting = (
        root in _ACTING
        or (root in _BUILTINS and found.name not in _PLAIN)
        # PyTorch's classes are settings and schedules; its functions include load.
        or (is_torch and not last[:1].isupper() and not _DTYPES.fullmatch(found.name))
        or any(part.startswith("__") for part in found.name.split("."))
        or len(found.module) + len(found.name) > MAX_CLASS_LENGTH
    )
    if is_acting:
        raise CheckpointError(
            f"refused global {found}: a checkpoint needs tensors, dictionaries and plain values "
            f"only, and a program that unpickles this one could run anything; if you trust it, "
            f"load it in PyTorch and torch.save just its state_dict()"
        )
    return found


def call(function: Global, arguments: tuple[Any, ...]) -> Any:
    """Returns the value that calling a global stands for."""
    if not function.is_modelled:
        # Python's way to make an object of the class that it is given.
        made = arguments[0] if function.name == "_reconstructor" and arguments else None
        return Opaque(made if isinstance(made, Global) else function)
    # What is copied here has a bounded size: a memoised argument can be passed a million times.
    if len(arguments) > 8:
        raise ValueError(f"{function} called with {len(arguments)} arguments")
    match function.name, arguments:
        case "OrderedDict", ():
            return {}
        case "OrderedDict", (list(pairs),):  # as Python 2 wrote it
            made = {}
            set_items(made, map(_pair, pairs))
            pairs.clear()  # moved, not copied
            return made
        case "_rebuild_tensor", (storage, offset, shape, strides):
            return Tensor(expect(storage, Storage), as_int(offset), _ints(shape), _ints(strides))
        case "_rebuild_tensor_v2", (storage, offset, shape, strides, _, _, *metadata):
            # The seventh marks a lazy negation or conjugate of the storage.
            if len(metadata) > 1 or any(metadata):
                raise CheckpointError(
                    "holds a tensor that is a negative or conjugate view, expected plain ones: "
                    "load it in PyTorch, call resolve_neg() or resolve_conj(), and save it again"
                )
            return Tensor(expect(storage, Storage), as_int(offset), _ints(shape), _ints(strides))
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
        f"({shown(', '.join(type(a).__name__ for a in arguments[:8]))}) in its pickle: PyTorch "
        f"doesn't write this, get the file from its source again"
    )


def make(cls: Global, arguments: tuple[Any, ...]) -> Record | Opaque:
    """Returns the object that creating one of a class stands for."""
    if not cls.is_modelled:
        return Opaque(cls)
    if arguments != () or not cls.is_module_class:
        raise CheckpointError(
            f"refused to create an object of {cls} in its pickle, expected modules only: get the "
            f"file from its source again"
        )
    return Record(str(cls))


def build(target: Any, state: Any) -> None:
    """Sets the state of an object."""
    if isinstance(target, Opaque):
        return
    if isinstance(target, Record) and target.state is None and type(state) is dict:
        target.state = state
    elif type(target) is dict and type(state) is dict:
        pass  # a state dictionary's `_metadata`: module versions, nothing about the arrays
    else:
        raise CheckpointError(
            f"refused to set state of type {type(state).__name__} on a {type(target).__name__} in "
            f"its pickle, expected a dictionary on a module (quantised modules are not read)"
        )


def persistent(pid: Any) -> Storage | Global:
    """Returns what a persistent id stands for: a storage, or in old files a module's class."""
    match pid:
        case ("storage", Global("torch", kind), str(key), str(), count, *view) if (
            kind in STORAGES and len(key) <= MAX_KEY_LENGTH and len(view) < 2
        ):
            count, dtype = as_int(count), STORAGES[kind]
            match view:
                case [] | [None]:
                    return Storage(dtype, key, count)
                case [(str(), first, size)]:
                    return Storage(dtype, key, count, (as_int(first), as_int(size)))
        case ("module", Global() as cls, _, _):  # with its source code
            return cls
    raise CheckpointError(
        "has a malformed storage reference in its pickle, expected ('storage', a torch storage "
        "type, key, location, element count): the file is damaged, get it from its source again"
    )


def set_items(target: dict[Any, Any], items: Any) -> None:
    """Sets items of a dictionary; keys that aren't strings or integers become opaque."""
    for key, value in items:
        # Hashing anything else may recurse without end or take exponential time.
        if type(key) is not str and not (type(key) is int and key.bit_length() < 64):
            key = Opaque(kind_of(key))
        if key in target:
            raise CheckpointError(
                f"has duplicate entries for {shown(str(key))} in its pickle, expected each name "
                f"once: the file was tampered with, get it from its source again"
            )
        target[key] = value


def expect(value: Any, kind: type) -> Any:
    """Returns a value of exactly that class; raises TypeError for others."""
    if type(value) is not kind:
        raise TypeError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def as_int(value: Any) -> int:
    """Returns an integer that is no boolean; raises TypeError for others."""
    return expect(value, int)


def _pair(item: Any) -> tuple[Any, Any]:
    key, value = item if type(item) in (list, tuple) else expect(item, tuple)
    return key, value


def _ints(values: Any) -> tuple[int, ...]:
    if len(expect(values, tuple)) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(values)} dimensions")
    return tuple(as_int(value) for value in values)
