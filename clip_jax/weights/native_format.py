"""The native format: a folder of `config.json` and `model.safetensors`.

The keys in `model.safetensors` are the public tree's paths, such as `visual/conv1/kernel`. Arrays
are written one by one, and read as views of the mapped file, so that neither direction needs memory
for a second model.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from clip_jax.config import CLIPConfig
from clip_jax.convert.archive import shown
from clip_jax.convert.checks import opened
from clip_jax.convert.safetensors import NAMES, read_safetensors, write_safetensors
from clip_jax.errors import CheckpointError, is_exhausted
from clip_jax.model_tokenizer import SETTINGS
from clip_jax.nn import CLIP, flatten, misfits, parameters, unflatten
from clip_jax.nn.clip import check_model
from clip_jax.nn.tree import check_unadapted, listed
from clip_jax.replace import replacing
from clip_jax.sentence_piece import RULES, VOCABULARIES, AnyTokenizer, check_belongs
from clip_jax.shapes import check_blocks, parameter_shapes
from clip_jax.weights.places import VERSION

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# The most characters of a configuration; a wrong file of that name may have any size.
MAX_CONFIG = 1 << 20

_COUNTER = "/num_batches_tracked"
_FLOATS = ("F16", "F32", "F64", "BF16")


def save(
    model: CLIP,
    folder: str | os.PathLike[str],
    *,
    tokenizer: AnyTokenizer | None = None,
) -> None:
    """Writes a model in the native format, which `load` reads exactly.

    The write is atomic. A folder that already holds a native model is replaced.

    Args:
        model: the model; its configuration and arrays are saved, not its `dtype` and `precision`.
        folder: the folder, which is created with its parents.
        tokenizer: the model's, as `load_tokenizer` gives it, to be saved beside it: SigLIP's, or
            one with tokens that were added to CLIP's.

    Raises:
        FileExistsError: `folder` exists and is no native model.
        OSError: it can't be written; nothing is left behind.
        TypeError: `model` is no model of both towers, or `tokenizer` no tokenizer.
        ValueError: `tokenizer` is another model's; or the model has layers or settings that its
            configuration doesn't say.
    """
    check_model(model)
    check_belongs(tokenizer, model.config.text.vocab_size)
    check_unadapted(model, "and would be loaded without them")
    files = {} if tokenizer is None else tokenizer.files()
    save_parameters(model.config, parameters(model), folder, tokenizer_files=files)


def save_parameters(
    config: CLIPConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    replace: bool = True,
    tokenizer_files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a public tree in the native format, array by array, as `save` does.

    Args:
        config: the architecture that the tree belongs to.
        params: nested dicts of NumPy or JAX arrays.
        folder: as for `save`.
        dtype: the dtype to cast all arrays to; by default each keeps its own.
        replace: whether to replace a native model that exists at the end of the write.
        tokenizer_files: what the tokenizer's `files` gives, if it isn't CLIP's own.

    Raises:
        ValueError: arrays are missing, unexpected, misshapen or not floats; lists all of them.
        FileExistsError: `folder` exists and is no native model.
        OSError: it can't be written; nothing is left behind.
    """
    arrays = flatten(params)
    if problems := _problems(config, arrays):
        raise ValueError(f"the parameters do not fit the configuration:\n{listed(problems)}")
    target = Path(os.path.realpath(folder))  # a link stays a link
    _check_replaceable(target)
    with replacing(target, replace=replace) as new:
        _write(new / CONFIG, config.to_json().encode())
        for name, content in (tokenizer_files or {}).items():
            _write(new / name, content)
        write_safetensors(new / WEIGHTS, arrays, dtype, {"format": "clip_jax", "version": VERSION})
        _check_replaceable(target)  # again: it may have changed meanwhile


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read_native(folder: str | os.PathLike[str]) -> tuple[CLIPConfig, dict[str, Any]]:
    """Reads the configuration and the parameter tree of a native folder.

    The arrays are views of the mapped file, read only on use. Writing to one changes a copy in
    memory, never the file.

    Raises:
        CheckpointError: it is no native folder, or a damaged one; lists all arrays that don't fit
            the configuration.
    """
    folder = Path(folder)
    try:
        missing = [name for name in (CONFIG, WEIGHTS) if not _is_file(folder / name)]
    except OSError as error:
        if is_exhausted(error):
            raise
        raise CheckpointError(f"{folder} can't be read ({error.strerror or error})") from None
    if missing:
        raise CheckpointError(
            f"{folder} is not a model: it has no {' and no '.join(missing)}. A model's folder "
            f"holds {CONFIG} and {WEIGHTS}, as clip_jax.save and `clip-jax convert` write them, or "
            f"the files of Hugging Face's transformers ({CONFIG} with a model_type) or of OpenCLIP "
            f"(open_clip_config.json)"
        )
    text = ""
    try:
        with open(folder / CONFIG, encoding="utf-8") as file:
            text = file.read(MAX_CONFIG + 1)
        if len(text) > MAX_CONFIG:
            raise ValueError(f"it has more than {MAX_CONFIG:,} characters, expected about 500")
        config = CLIPConfig.from_json(text)
    except (ValueError, OSError) as error:
        if is_exhausted(error):
            raise
        reason = shown(str(error).rstrip("."), 1_000)
        advice = (
            f"If the folder is of Hugging Face's transformers, its {CONFIG} lacks a model_type: "
            f"get it from its source again"
        )
        raise CheckpointError(
            f"{folder / CONFIG} is not a configuration of clip_jax: {reason}. {advice}"
        ) from None
    path = folder / WEIGHTS
    try:
        with opened(path) as file:
            # Copy-on-write: it may become a JAX array's memory, which must be writable.
            data = np.memmap(file, np.uint8, mode="c")
        arrays, metadata = read_safetensors(data)
    except (ValueError, OSError, CheckpointError) as error:
        if is_exhausted(error):
            raise
        raise CheckpointError(f"{path}: {error}") from None
    if (version := metadata.get("version", VERSION)) != VERSION:
        raise CheckpointError(
            f"{path} is of version {shown(str(version))} of the format. This clip_jax reads "
            f"{VERSION}: upgrade it, or convert the model again"
        )
    try:
        problems = _problems(config, arrays)
    except ValueError as error:
        raise CheckpointError(f"{path} does not fit its {CONFIG}: {error}") from None
    if problems:
        raise CheckpointError(f"{path} does not fit its {CONFIG}:\n{listed(problems)}")
    return config, unflatten(arrays)


def _problems(config: CLIPConfig, arrays: Mapping[str, Any]) -> list[str]:
    check_blocks(config, len(arrays))
    problems = misfits(parameter_shapes(config), arrays)
    for path, array in arrays.items():
        dtype = getattr(array, "dtype", None)
        if not isinstance(dtype, np.dtype):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            problems.append(f"! {path}: expected an array, as np.asarray makes. Got {kind}")
        elif NAMES.get(dtype.newbyteorder("=")) not in _kinds(path):
            problems.append(f"! {path}: expected floats. Got {dtype}")
    return problems


def _kinds(path: str) -> tuple[str, ...]:
    return (*_FLOATS, "I32", "I64") if path.endswith(_COUNTER) else _FLOATS


def _is_file(path: Path) -> bool:
    # In some versions of Python, Path.is_file() raises if the folder can't be entered.
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if folder.is_dir():
        entries = set(os.listdir(folder))
        if not entries:
            return
        if entries - {RULES, SETTINGS, *VOCABULARIES} == {CONFIG, WEIGHTS}:
            with contextlib.suppress(ValueError):
                CLIPConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
                return
    raise FileExistsError(
        f"{folder} exists and is something else than a folder written by clip_jax.save: "
        f"choose another name, or remove it first"
    )
