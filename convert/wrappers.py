"""Finds the weights in what training scripts save around them, and drops wrappers' prefixes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from clip_jax.convert.archive import shown
from clip_jax.convert.pickled import Opaque, Tensor, kind_of
from clip_jax.errors import CheckpointError
from clip_jax.messages import counted, some

# Keys under which training scripts store a model's weights, or their average over training.
_WEIGHTS = re.compile(
    r"(ema_)?((model|net|network)_)?(ema_)?"
    r"(state_?dict|state|model|module|net|network|weights|params|ema)(_ema)?"
)
# Keys of what has tensors too, but is no model's.
_OTHERS = re.compile(r"(\w*_)?(optim|sched|scaler|amp|rng|random|callback|loop|loss|grad)\w*|opt")
_MAX_DEPTH = 4

# Names that a wrapper adds to the paths of what it wraps: torch.compile, FSDP, checkpointing of
# activations, and DeepSpeed's or accelerate's of old.
_MARKS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_PARALLEL = "module."  # of PyTorch's data parallelism

_Value = TypeVar("_Value")


def state_values(root: dict[Any, Any], kind: type = Tensor) -> dict[str, Any]:
    """Finds the state dictionary in a file of torch.save, and drops wrappers' prefixes.

    Args:
        root: the content of the file.
        kind: the type of its tensors.

    Raises:
        CheckpointError: it holds several state dictionaries or none, or names that aren't strings.
    """
    candidates = dict(_candidates(root, kind))
    known = [
        path for path in candidates if path and all(_WEIGHTS.fullmatch(key.lower()) for key in path)
    ]
    own = [path for path in candidates if not path]
    if known and own:  # a number beside the weights, such as the step, is no other set of them
        most = max(_count(candidates[path], kind) for path in known)
        own = own if 2 * _count(root, kind) > most else []
    # Without such names, tensors of the root itself are the weights, whatever lies beside them.
    paths = [*own, *known] or list(candidates)
    if len(paths) > 1:
        told = some(
            [f"{_shown(p)}: {counted(_count(candidates[p], kind), 'array')}" for p in paths], 10
        )
        raise CheckpointError(
            f"holds {len(paths)} sets of weights ({told}), expected one: in PyTorch, torch.save "
            f"the one that is meant, by itself"
        )
    if not paths and (objects := [k for k, value in root.items() if isinstance(value, Opaque)]):
        told = some([f"{shown(str(k))} is a {kind_of(root[k])}" for k in objects], 5)
        raise CheckpointError(
            f"holds no tensors, expected a dictionary of them ({told}, which isn't read): load "
            f"it in PyTorch, if you trust it, and torch.save the model's state_dict()"
        )
    state = candidates[paths[0]] if paths else root
    if bad := [key for key in state if not isinstance(key, str)]:
        raise CheckpointError(
            f"has {len(bad)} entries whose names are no strings ({_key(bad[0])}), expected names "
            f"of arrays: torch.save the model's state_dict()"
        )
    return without_prefix(state)


def without_prefix(state: dict[str, _Value]) -> dict[str, _Value]:
    """Drops what wrappers of PyTorch add to names: `_orig_mod.` and its like, and `module.`.

    The latter only if all names begin with it, since a model may have a part of that name.

    Raises:
        CheckpointError: two arrays get one name.
    """
    renamed = {name: _MARKS.sub("", name) for name in state}
    for _ in range(_MAX_DEPTH):
        if not renamed or not all(name.startswith(_PARALLEL) for name in renamed.values()):
            break
        renamed = {old: name.removeprefix(_PARALLEL) for old, name in renamed.items()}
    result: dict[str, _Value] = {}
    for old, name in renamed.items():
        if name in result:
            other = next(o for o, n in renamed.items() if n == name)
            raise CheckpointError(
                f"has two arrays for {shown(name)}, {shown(other)} and {shown(old)}, expected one: "
                f"in PyTorch, torch.save the weights that are meant, by themselves"
            )
        result[name] = state[old]
    return result


def _candidates(
    root: dict[Any, Any], kind: type
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yields the dictionaries that have tensors among their values, by their paths."""
    seen: set[int] = set()  # each is looked at once, so that this takes no longer than reading
    queue: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), root)]
    for path, found in queue:
        if id(found) in seen:
            continue
        seen.add(id(found))
        if any(isinstance(value, kind) for value in found.values()):
            yield path, found
        if len(path) < _MAX_DEPTH:
            queue += [
                ((*path, key), value)
                for key, value in found.items()
                if isinstance(value, dict) and isinstance(key, str) and not _OTHERS.fullmatch(key)
            ]


def _count(found: Mapping[Any, Any], kind: type) -> int:
    return sum(isinstance(value, kind) for value in found.values())


def _shown(path: tuple[str, ...]) -> str:
    return shown(".".join(path)) if path else "outside of any dictionary"


def _key(key: Any) -> str:
    return kind_of(key) if isinstance(key, Opaque) else shown(str(key))
