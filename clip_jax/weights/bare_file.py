"""Reads a bare file of weights, which says neither its activation nor its attention heads.

Neither can be seen in the arrays, and a model with the wrong ones gives embeddings that look right.
So they are given; or a configuration lies beside the file; or it is one of OpenAI's own files,
which are known by their checksums. Any other is taken for one of OpenAI's kind, with a warning that
says so; but not where no model of that width is.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.catalog import CATALOG
from clip_jax.config import Activation, CLIPConfig, NumHeads, ViTConfig
from clip_jax.convert.families import CLIP, CONFIG, OPEN_CLIP_CONFIG
from clip_jax.convert.huggingface_config import from_document as of_huggingface
from clip_jax.convert.huggingface_pixels import read_pixels
from clip_jax.convert.infer import heads_of_towers
from clip_jax.convert.json_file import read_json
from clip_jax.convert.open_clip import with_config
from clip_jax.convert.open_clip_config import from_document as of_open_clip
from clip_jax.convert.pytorch import from_pytorch
from clip_jax.convert.reader import read_checkpoint
from clip_jax.errors import CheckpointError
from clip_jax.weights.download import has_checksum
from clip_jax.weights.native_format import WEIGHTS

# Widths of OpenCLIP's Vision Transformers whose heads are not 64 wide: there are 16 of them.
_OTHER_HEADS = (1280, 1408, 1664, 1792)


def read_bare_file(
    path: Path, activation: Activation | None = None, num_heads: NumHeads | None = None
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Reads a file of weights with OpenAI's names, or OpenCLIP's where a configuration is beside.

    Args:
        path: the file.
        activation: the activation that it was trained with; wins over a configuration beside it.
        num_heads: the attention heads of the vision tower, if the text tower's are 64 wide, as in
            every published model; or of the vision and of the text tower. Wins likewise.

    Warns that OpenAI's are assumed, where nothing says them.

    Returns:
        The configuration, and the parameter tree.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it can't be read or doesn't fit, or nothing says the heads of a model
            whose width has others than OpenAI's; lists all problems.
        ValueError: there is no such activation, or `num_heads` are no positive whole numbers.
    """
    heads_of_towers(num_heads)
    arrays = read_checkpoint(path)
    if any("/" in name for name in arrays):
        raise CheckpointError(
            f"{path} has clip_jax's own names for its arrays: give the folder that holds it, "
            f"together with its config.json, instead of {WEIGHTS} alone"
        )
    problem, read = None, None
    try:
        read = from_pytorch(arrays, activation or "quick_gelu", num_heads)
    except CheckpointError as error:
        problem = CheckpointError(f"{path}: {error}")
    if read and (activation and num_heads or _is_official(path, read[0])):
        return read
    if beside := _beside(path):
        return _with_beside(path, arrays, *beside, activation, num_heads)
    if read is None:
        assert problem is not None
        raise problem
    unsaid = _unsaid(path, read[0], activation, num_heads)
    if num_heads is None and read[0].vision.width in _OTHER_HEADS:
        raise CheckpointError(unsaid)
    warnings.warn(unsaid, stacklevel=5)
    return read


def _is_official(path: Path, config: CLIPConfig) -> bool:
    """Whether it is one of OpenAI's files; only one of the right shapes is read for it."""
    official = (entry for entry in CATALOG.values() if not entry.is_bundled)
    return any(has_checksum(path, e.sha256) for e in official if e.config == config)


def _beside(path: Path) -> tuple[Path, CLIPConfig] | None:
    """Returns a configuration of a whole model in the folder of a file, and its path."""
    for name in (OPEN_CLIP_CONFIG, CONFIG):
        place = path.parent / name
        try:
            document = read_json(place)
            if name == OPEN_CLIP_CONFIG:
                return place, of_open_clip(document)
            if document.get("model_type") == CLIP:
                return place, of_huggingface(document, read_pixels(path.parent))
            if isinstance(document.get("vision"), dict) and "type" in document["vision"]:
                return place, CLIPConfig.from_json(json.dumps(document))
        except FileNotFoundError:
            continue
        except (CheckpointError, ValueError) as error:
            reason = str(error).removeprefix(f"{place}: ")
            raise CheckpointError(f"{place}, beside {path.name}: {reason}") from None
    return None


def _with_beside(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    place: Path,
    config: CLIPConfig,
    activation: Activation | None,
    num_heads: NumHeads | None,
) -> tuple[CLIPConfig, dict[str, Any]]:
    vision_heads, text_heads = heads_of_towers(num_heads)
    vision, text = config.vision, config.text
    if activation:
        text = dataclasses.replace(text, activation=None)
        if isinstance(vision, ViTConfig):
            vision = dataclasses.replace(vision, activation=None)
    try:
        vision = dataclasses.replace(vision, num_heads=vision_heads or vision.num_heads)
        text = dataclasses.replace(text, num_heads=text_heads or text.num_heads)
        config = dataclasses.replace(
            config, vision=vision, text=text, activation=activation or config.activation
        )
        return with_config(config, arrays, place.name)
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(
            f"{path}: does not fit {place.name}, which lies beside it: {error}\nIf that is another "
            f"model's, move the file elsewhere, or give its activation and num_heads"
        ) from None


def _unsaid(
    path: Path, config: CLIPConfig, activation: Activation | None, num_heads: NumHeads | None
) -> str:
    """Says what a file doesn't say, what is taken for it, and how to say it."""
    heads = f"({config.vision.num_heads}, {config.text.num_heads})"
    unsaid, taken, give = [], [], []
    if activation is None:
        unsaid.append("the activation")
        taken.append("quick_gelu")
        give.append('activation= (--activation), "gelu" for most of OpenCLIP\'s')
    if num_heads is None:
        unsaid.append("the attention heads")
        taken.append(f"heads 64 wide, {heads} of them in the vision and the text tower,")
        give.append("num_heads= (--num-heads)")
    are_others = num_heads is None and config.vision.width in _OTHER_HEADS
    assumed = (
        f"no model of width {config.vision.width} has heads 64 wide as OpenAI's have"
        if are_others
        else f"{' and '.join(taken)} are assumed as in OpenAI's, and if they are others, its "
        f"embeddings are wrong"
    )
    return (
        f"{path}: doesn't say {' and '.join(unsaid)} of its model, and is none of OpenAI's own "
        f"files: {assumed}. Give {' and '.join(give)}, or put its {OPEN_CLIP_CONFIG} or {CONFIG} "
        f"beside it"
    )
