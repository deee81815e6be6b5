"""Checkpoints of tiny models, and what becomes of them when bytes or whole structures are changed.

Changes of a structure come with lengths and checksums that are right again, so that they get past
the first check of a reader; changes of bytes don't.
"""

import copy
import functools
import io
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clip_jax.convert.pytorch import to_pytorch
from clip_jax.weights.native_format import save_parameters
from tests.models import random_parameters
from tests.pickles import Raw, encode, entries_of, glob, legacy, parts, program, record, zipped

TEXT = TextConfig(width=8, num_layers=2, num_heads=1, context_length=5, vocab_size=7)
VIT = CLIPConfig(3, ViTConfig(4, 2, 8, 2, 1), TEXT)
RESNET = CLIPConfig(3, ResNetConfig(32, 2, (1, 1, 1, 1), 1), TEXT)

NUMBERS = (
    *(-1, 0, 1, 2, 3, 7, 64, 127, 128, 255, 256, 32767, 65535, 1_000_003),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64),
    *(-(2**31), -(2**63), 10**30, 10**400),
)
TEXTS = (
    "",
    "a",
    "\0",
    "é",
    "\ud800",
    "..",
    "/",
    "a/b",
    "\x1b[2J",
    "$x$",
    "1" * 5_000,
    "x" * 70_000,
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0.5, 1e308, float("inf"), float("nan"), [], {}, [[]], {"a": {}}),
    *NUMBERS,
    *(text for text in TEXTS if len(text) < 10_000),
)


# ---- bytes --------------------------------------------------------------------------------------


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """With some bytes changed, put in, left out or doubled."""
    result = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        # Indexes lie at either end of a file.
        middle = rng.choice((0, len(result), rng.randrange(len(result) + 1)))
        at = min(max(middle + round(rng.gauss(0, 60)), 0), max(len(result) - 1, 0))
        size = rng.choice((1, 2, 4, 8))
        match rng.randrange(7):
            case 0:
                result[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                number = rng.choice(NUMBERS) % 256**size
                result[at : at + size] = number.to_bytes(size, "little")
            case 2:
                del result[at : at + rng.choice((1, 2, 8, 100))]
            case 3:
                result[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 4:
                result[at:at] = result[at : at + rng.choice((1, 4, 30, 500))]
            case 5:
                del result[at if at > len(result) // 2 else len(result) - 1 - at :]
            case 6:
                result[at : at + size] = bytes(b ^ (1 << rng.randrange(8)) for b in
                                               result[at : at + size])  # fmt: skip
        result = result or bytearray(b"\0")
    return bytes(result)


def repeated(chunk: bytes, rng: random.Random, limit: int = 20 << 20) -> bytes:
    """A short run of bytes, up to twenty megabytes of it."""
    size = rng.choice((1 << 10, 1 << 16, 1 << 20, limit))
    return (chunk or b"\0") * (size // max(len(chunk), 1))


# ---- JSON ---------------------------------------------------------------------------------------


def mutated_json(document: Any, rng: random.Random) -> Any:
    """A document with some values replaced, left out, renamed or put elsewhere."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case 2:
                del holder[key]
            case 3:
                other, other_key = rng.choice(places)
                holder[key] = copy.deepcopy(other[other_key])
            case 4 if isinstance(holder, dict):
                holder[rng.choice((*TEXTS, key + "x", str(key)[:-1]))] = holder.pop(key)
            case _ if isinstance(holder[key], int):
                holder[key] += rng.choice((-1, 1, 2, 1000))
            case _:
                holder[key] = [holder[key]]
    return document


def json_text(document: Any, rng: random.Random) -> bytes:
    """The document as JSON, now and then with what the format has no document for."""
    text = json.dumps(document)
    match rng.randrange(150):
        case 0:  # a name twice
            text = text.replace("{", '{"a": 1, "a": 2, ', 1)
        case 1:
            depth = rng.choice((10, 900, 100_000))
            text = '{"a":' * depth + text + "}" * depth
        case 2:
            text = "[" * rng.choice((10, 900, 100_000))
        case 3:
            text = text.replace("8", "9" * 10_000, 1)
        case 4:
            text = text.replace("8", "1e999", 1)
        case 5:
            body = repeated(rng.choice((b"[],", b"{},", b'{"a":1},', b"0,", b'"",')), rng).decode()
            text = text.replace("{", '{"many": [' + body + "0], ", 1)
        case 6:
            empty = '"%x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, '
            count = rng.choice((100, 5_000, 250_000))
            text = text.replace("{", "{" + "".join(empty % i for i in range(count)), 1)
    return text.encode("utf-8", "surrogatepass")


def _places(document: Any) -> Any:
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


# ---- pickles ------------------------------------------------------------------------------------

_INSTRUCTIONS = (
    *(bytes([code]) for code in b"()]}Nt.\x85\x86\x87usaeRQ\x81\x93\x940b2"),
    *(b"q\x00", b"h\x00", b"r\x00\x01\x00\x00", b"j\x00\x01\x00\x00", b"\x82\x01", b"P0\n"),
    *(b"\x8a\x09" + bytes(8) + b"\x7f", b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096, b"I10\n"),
    bytes(glob("__torch__", "M")),
    bytes(glob("torch", "Size")),
    bytes(glob("collections", "OrderedDict")),
    bytes(glob("torch._utils", "_rebuild_tensor_v2")),
    bytes(glob("torch._utils", "_rebuild_parameter")),
    bytes(glob("torch.jit._pickle", "restore_type_tag")),
    bytes(glob("os", "system")),
    *(b"\x8f", b"\x90", b"\x91", b"\x92", bytes(glob("argparse", "Namespace")) + b")\x81"),
    bytes(glob("numpy.core.multiarray", "scalar")),
)


def mutated_pickle(pickle: bytes, rng: random.Random) -> bytes:
    """With some instructions changed, put in, left out or moved, and their lengths right."""
    steps = list(_instructions(pickle))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(steps) or 1)
        match rng.randrange(8):
            case 0:
                del steps[at : at + rng.choice((1, 1, 2, 5))]
            case 1:
                steps.insert(at, rng.choice(_INSTRUCTIONS))
            case 2:
                steps[at : at + 1] = [encode(rng.choice(NUMBERS[:-1]))]
            case 3:
                steps[at : at + 1] = [encode(rng.choice(TEXTS))]
            case 4:
                steps[at:at] = steps[at : at + rng.choice((1, 3, 20))]
            case 5:
                other = rng.randrange(len(steps) or 1)
                steps[at : at + 1], steps[other : other + 1] = (
                    steps[other : other + 1],
                    steps[at : at + 1],
                )
            case 6:
                steps[at : at + 1] = [encode(rng.choice((None, True, 1.5, (), [], {}, (1,), [1])))]
            case _:  # only the instructions that are followed by a number, which is another now
                wanted = [i for i, step in enumerate(steps) if step[:1] in b"JKM"] or [at]
                steps[rng.choice(wanted)] = encode(rng.choice(NUMBERS[:-1]))
        steps = steps or [b"."]
    at = rng.randrange(len(steps))
    if rng.randrange(300) == 0:  # one value by many names, wherever a dictionary may be
        count = rng.choice((10, 1_000, 300_000))
        names = b"".join(encode(f"{i:x}") + b"h\x00" for i in range(count))
        steps[at:at] = [b"q\x00", b"(" + names + b"u"]
    if rng.randrange(300) == 0:
        chunk = b"".join(rng.choices(_INSTRUCTIONS[:22], k=rng.choice((1, 1, 1, 2))))
        steps.insert(at, repeated(chunk, rng, 16 << 20))
    return b"".join(map(bytes, steps))


def _instructions(pickle: bytes) -> Any:
    places = [place for _, _, place in pickletools.genops(pickle)]
    for begin, end in zip(places, [*places[1:], len(pickle)], strict=True):
        yield pickle[begin:end]


# ---- archives -----------------------------------------------------------------------------------


def mutated_archive(entries: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A ZIP archive of changed entries, or with a changed table of contents."""
    entries = list(entries)
    kind = rng.randrange(10)
    if kind < 5:
        number = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
        name, pickle = entries[number]
        how = mutated_pickle if rng.random() < 0.8 else mutated_bytes
        entries[number] = name, how(pickle, rng)
    elif kind < 7:
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(entries))
            name, data = entries[at]
            match rng.randrange(6):
                case 0:
                    del entries[at]
                    entries = entries or [("x/data.pkl", b"")]
                case 1:
                    entries[at] = name, mutated_bytes(data, rng)
                case 2:
                    top = name.partition("/")[0]
                    names = ("byteorder", "data/0", "data.pkl", "version", "code/", "data/é", "")
                    entries[at] = rng.choice((f"{top}/{rng.choice(names)}", "é", "a/b", "/")), data
                case 3:
                    entries.append(rng.choice(entries))
                case 4:
                    other = rng.randrange(len(entries))
                    entries[at] = name, entries[other][1]
                case 5:
                    entries.insert(0, (name.partition("/")[0] + "/byteorder", b"big"))
    compression = zipfile.ZIP_DEFLATED if rng.randrange(60) == 0 else zipfile.ZIP_STORED
    archive = _zipped(entries, compression)
    if kind == 7:
        return _with_another_index(archive, rng)
    return mutated_bytes(archive, rng) if kind > 7 else archive


def _zipped(entries: list[tuple[str, bytes]], compression: int) -> bytes:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names twice are what is asked for
        return zipped(entries, compression)


def _with_another_index(archive: bytes, rng: random.Random) -> bytes:
    """Fields of the table of contents or of its end changed, or millions of entries in it."""
    end = archive.rindex(b"PK\5\6")
    begin = int.from_bytes(archive[end + 16 : end + 20], "little")
    result = bytearray(archive)
    if rng.randrange(60) == 0:
        name = b"x/%x"
        entries = b"".join(
            _CENTRAL.pack(*(20, 20, 0, 0, 0, 33, 0, 0, 0), len(name % i), *(0,) * 6) + name % i
            for i in range(rng.choice((100, 60_000, 300_000)))
        )
        count = 0xFFFF
        tail = struct.pack("<HHHHIIH", 0, 0, count, count, len(entries) % 2**32, begin, 0)
        return bytes(result[:begin]) + entries + b"PK\5\6" + tail
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.choice([at for at in range(begin, end) if result[at : at + 4] == b"PK\1\2"])
        if rng.randrange(3) == 0:
            place = end
        at = place + rng.randrange(4, 46 if place < end else 22, 2)
        size = rng.choice((2, 4))
        if at + size <= len(result):
            number = rng.choice((*NUMBERS, at, begin, end, len(result))) % 256**size
            result[at : at + size] = number.to_bytes(size, "little")
    return bytes(result)


_CENTRAL = struct.Struct("<4xHHHHHHIIIHHHHHII")


def mutated_legacy(data: bytes, rng: random.Random) -> bytes:
    """Another file of torch.save before 1.6: with other pickles, or other bytes."""
    if rng.randrange(3) == 0:
        return mutated_bytes(data, rng)
    file, pickles = io.BytesIO(data), []
    for _ in range(5):
        start = file.tell()
        for _ in pickletools.genops(file):
            pass
        pickles.append(data[start : file.tell()])
    at = rng.choice((0, 1, 2, 3, 3, 3, 3, 4, 4))
    pickles[at] = mutated_pickle(pickles[at], rng)
    return b"".join(pickles) + data[file.tell() :]


# ---- safetensors --------------------------------------------------------------------------------


def mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    """With another header, whose length is right; or with other bytes."""
    if rng.randrange(4) == 0:
        return mutated_bytes(data, rng)
    end = 8 + int.from_bytes(data[:8], "little")
    text = json_text(mutated_json(json.loads(data[8:end]), rng), rng)
    if rng.randrange(6) == 0:
        text = mutated_bytes(text, rng)
    length = rng.choice(NUMBERS) % 2**64 if rng.randrange(30) == 0 else len(text)
    return length.to_bytes(8, "little") + text + data[end:]


# ---- whole files --------------------------------------------------------------------------------


@functools.cache
def arrays(config: CLIPConfig) -> dict[str, np.ndarray]:
    """A model's arrays by their official names."""
    return to_pytorch(config, random_parameters(config))


def _state_dict(config: CLIPConfig) -> list[tuple[str, bytes]]:
    tensors, storages = parts(arrays(config))
    return entries_of(program({"epoch": 3, "state_dict": tensors}), storages)


def _old(config: CLIPConfig) -> bytes:
    tensors, storages = parts(arrays(config))
    sizes = [array.size for array in arrays(config).values()]
    found = zip(storages.items(), sizes, strict=True)
    return legacy({"model": tensors}, {key: (size, data) for (key, data), size in found})


def _module(config: CLIPConfig) -> list[tuple[str, bytes]]:
    tensors, storages = parts(arrays(config))
    tree: dict[str, Any] = {"training": False, "input_resolution": 4}
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor

    def module(attributes: dict[str, Any]) -> Raw:
        inside = {k: module(v) if type(v) is dict else v for k, v in attributes.items()}
        return record("M", inside)

    entries = entries_of(program(module(tree)), storages)
    return [*entries, ("x/code/__torch__.py", b"class M: pass"), ("x/byteorder", b"little")]


def _safetensors(config: CLIPConfig) -> bytes:
    from safetensors.numpy import save

    return save({name: np.array(array, order="C") for name, array in arrays(config).items()})


def _of_torch(config: CLIPConfig, save: Callable[[Any, dict[str, Any], Any], None]) -> bytes | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    file = io.BytesIO()
    save(torch, {name: torch.tensor(array) for name, array in arrays(config).items()}, file)
    return file.getvalue()


def _scripted(torch: Any, state: dict[str, Any], file: Any) -> None:
    import warnings

    root = torch.nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        if tensor.is_floating_point():
            module.register_parameter(leaf, torch.nn.Parameter(tensor))
        else:
            module.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(root), file)


@functools.cache
def _seeds(kind: str) -> list[Any]:
    """What files of a kind are made of, before anything is changed."""
    configs = (VIT, RESNET)
    match kind:
        case "torchscript":
            own = [_module(config) for config in configs]
            return own + _unzipped(_of_torch(config, _scripted) for config in configs)
        case "torch":
            own = [_state_dict(config) for config in configs]

            def save(torch: Any, state: dict[str, Any], file: Any) -> None:
                torch.save(state, file)

            return own + _unzipped(_of_torch(config, save) for config in configs)
        case "legacy":

            def save_old(torch: Any, state: dict[str, Any], file: Any) -> None:
                torch.save(state, file, _use_new_zipfile_serialization=False)

            found = [_of_torch(config, save_old) for config in configs]
            return [data for data in (*map(_old, configs), *found) if data]
        case "safetensors":
            return [_safetensors(config) for config in configs]
    raise ValueError(f"no kind of checkpoint: {kind}")


def _unzipped(archives: Any) -> list[list[tuple[str, bytes]]]:
    found = []
    for data in archives:
        if data is not None:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                found.append([(name, archive.read(name)) for name in archive.namelist()])
    return found


KINDS = ("torchscript", "torch", "legacy", "safetensors", "config")


def write_mutant(kind: str, rng: random.Random, folder: Path) -> Path:
    """Writes a changed checkpoint of a kind; its file, or its folder for "config"."""
    if kind == "config":
        return _write_folder(rng, folder)
    seed = rng.choice(_seeds(kind))
    if kind == "safetensors":
        data = mutated_safetensors(seed, rng)
    elif kind == "legacy":
        data = mutated_legacy(seed, rng)
    else:
        data = mutated_archive(seed, rng)
    path = folder / ("mutant.safetensors" if kind == "safetensors" else "mutant.pt")
    path.write_bytes(data)
    return path


def _write_folder(rng: random.Random, folder: Path) -> Path:
    for name, config in (("vit", VIT), ("resnet", RESNET)):
        if not (folder / name).exists():
            save_parameters(config, random_parameters(config), folder / name)
    source, mutant = folder / rng.choice(("vit", "resnet")), folder / "mutant"
    mutant.mkdir(exist_ok=True)
    config = (source / "config.json").read_bytes()
    weights = (source / "model.safetensors").read_bytes()
    if rng.randrange(5):
        config = json_text(mutated_json(json.loads(config), rng), rng)
        if rng.randrange(6) == 0:
            config = mutated_bytes(config, rng)
    else:
        weights = mutated_safetensors(weights, rng)
    (mutant / "config.json").write_bytes(config)
    (mutant / "model.safetensors").write_bytes(weights)
    return mutant
