"""Containers of other libraries, and what becomes of them when their structure is changed."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from safetensors.numpy import save

from tests.checkpoint_mutations import (
    NUMBERS,
    TEXTS,
    json_text,
    mutated_bytes,
    mutated_json,
    mutated_safetensors,
)

KINDS = ("msgpack", "shards")

ARRAYS = {f"a.{i}": np.full((i + 1, 3), i, np.float32) for i in range(6)}
TREE = {
    "text_model": {"fc1": {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float16)}},
    "logit_scale": np.array(2.5, np.float32),
}


def packed(array: np.ndarray) -> bytes:
    """An array as Flax packs it."""
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb(content)))


def flax_bytes(tree: Mapping[str, Any]) -> bytes:
    """A tree as Flax writes it, without Flax."""

    def extended(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: extended(inner) for name, inner in value.items()}
        return msgpack.unpackb(packed(np.asarray(value)))

    return msgpack.packb(extended(tree))


def write_shards(
    folder: Path,
    shards: Mapping[str, Mapping[str, np.ndarray]],
    index: Mapping[str, str] | None = None,
    name: str = "model.safetensors.index.json",
) -> Path:
    """Shards of safetensors, and an index of them, or another one; gives the index."""
    for shard, arrays in shards.items():
        (folder / shard).write_bytes(save(dict(arrays)))
    places = {array: shard for shard, arrays in shards.items() for array in arrays}
    content = {"metadata": {"total_size": 1}, "weight_map": places if index is None else index}
    (folder / name).write_text(json.dumps(content))
    return folder / name


def two_shards() -> dict[str, dict[str, np.ndarray]]:
    """Some arrays in the first of two shards, the others in the second."""
    return {
        f"model-0000{n}-of-00002.safetensors": dict(list(ARRAYS.items())[3 * n - 3 : 3 * n])
        for n in (1, 2)
    }


def write_mutant(kind: str, rng: random.Random, folder: Path) -> Path:
    """Writes a changed container of a kind; its file, or the index of its shards."""
    return {"msgpack": _msgpack, "shards": _shards}[kind](rng, folder)


def _msgpack(rng: random.Random, folder: Path) -> Path:
    path = folder / "flax_model.msgpack"
    data = msgpack.packb(_mutated_tree(rng), strict_types=False)
    if rng.randrange(3) == 0:
        data = mutated_bytes(data, rng)
    path.write_bytes(data)
    return path


def _mutated_tree(rng: random.Random) -> Any:
    tree = msgpack.unpackb(flax_bytes(TREE))
    holder, key = rng.choice(
        [(tree, "logit_scale"), *((tree["text_model"]["fc1"], key) for key in ("kernel", "bias"))]
    )
    shape, dtype, data = msgpack.unpackb(holder[key].data)
    for _ in range(rng.choice((1, 1, 2))):
        match rng.randrange(8):
            case 0:
                numbers = [n for n in NUMBERS if -(2**63) <= n < 2**64]
                shape = [rng.choice(numbers) for _ in range(rng.choice((0, 1, 2, 70)))]
            case 1:
                dtype = rng.choice(("float16", "bfloat16", "int8", "object", "O", "V2", "<f4"))
            case 2:
                data = rng.choice((b"", b"abc", bytes(24), "text", 7, None, [1]))
            case 3:
                shape = rng.choice((["ab"], [{}], [[]], [2.0], shape[::-1]))
            case 4:
                text = rng.choice(TEXTS).encode("utf-8", "replace").decode()
                holder[text] = holder.get(key)
            case 5:
                for _ in range(rng.choice((1, 70, 400))):
                    tree = {rng.choice(("a", "text_model")): tree}
            case 6:
                holder["extra"] = rng.choice((None, 1, -1, 0.5, b"x", [], [1], {}, "text"))
            case 7:
                shape = [*shape, 1]
    kind = rng.choice((1, 1, 1, 1, 3, 2, 127, -1))
    if key in holder:
        holder[key] = msgpack.ExtType(kind % 128, msgpack.packb([shape, dtype, data]))
    return tree


def _shards(rng: random.Random, folder: Path) -> Path:
    path = write_shards(folder, two_shards())
    if rng.randrange(3) == 0:
        shard = folder / f"model-0000{rng.choice((1, 2))}-of-00002.safetensors"
        shard.write_bytes(mutated_safetensors(shard.read_bytes(), rng))
        return path
    text = json_text(mutated_json(json.loads(path.read_text()), rng), rng)
    path.write_bytes(mutated_bytes(text, rng) if rng.randrange(4) == 0 else text)
    return path
