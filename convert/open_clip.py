"""Reads and writes OpenCLIP's checkpoints: folders, and files whose model the caller names."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from clip_jax.config import Activation, CLIPConfig, SigLIPConfig, check_activation
from clip_jax.convert.checks import named
from clip_jax.convert.families import OPEN_CLIP_CONFIG, check_open_clip
from clip_jax.convert.folder import read_folder
from clip_jax.convert.folder_writer import write_folder
from clip_jax.convert.json_file import read_json
from clip_jax.convert.long_clip import with_one_table
from clip_jax.convert.open_clip_config import from_document, to_document
from clip_jax.convert.parts import model_arrays
from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.rules import OPEN_CLIP, OPEN_CLIP_PREFIXED, OPEN_CLIP_SIGLIP
from clip_jax.convert.table import check_arrays, count_blocks, from_tree, to_tree
from clip_jax.errors import CheckpointError
from clip_jax.open_clip_architectures import architectures
from clip_jax.open_clip_catalog import lookup_tag, pretrained_tags
from clip_jax.shapes import blocks, check_blocks, parameter_shapes

WEIGHTS = "open_clip_model.safetensors"
PREFIX = "text."
# What only SigLIP's towers of timm have.
LATENT, POSITIONS = "visual.trunk.attn_pool.latent", "visual.trunk.pos_embed"
OpenCLIPs = Literal["open_clip"]
SCALARS = ("logit_scale", "logit_bias")
# Three scalars of OpenAI's archives, which OpenCLIP's files may have inherited.
IGNORED = ("input_resolution", "context_length", "vocab_size")


def from_open_clip(
    path: str | os.PathLike[str],
    *,
    model: str | Mapping[str, Any] | None = None,
    activation: Activation | OpenCLIPs | None = None,
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Reads an OpenCLIP checkpoint.

    Args:
        path: a folder with `open_clip_config.json` and weights, or a file of weights, a training
            checkpoint included.
        model: for a file, which doesn't describe its model: OpenCLIP's name of the architecture,
            such as "ViT-H-14", or of weights, such as "ViT-H-14/dfn5b"; or a dictionary in the form
            of `open_clip_config.json`.
        activation: for a file and an architecture: the GELU that the weights were trained with.
            Architectures whose name ends with "-quickgelu" say it. For SigLIP: "open_clip" for the
            exact GELU where OpenCLIP computes it, although all of these models were trained with
            the tanh form, which is what they get otherwise; it differs by some 1e-4.

    Returns:
        The configuration, and nested dicts of arrays in our layouts with their dtypes unchanged:
        views of the mapped file.

    Raises:
        FileNotFoundError: there is no such file or folder.
        CheckpointError: it can't be read, isn't supported, or doesn't fit its configuration; lists
            all problems.
        ValueError: `model` or `activation` is missing, unknown, or not for this path.
    """
    path = Path(path)
    if path.is_dir():
        if model is not None or activation not in (None, "open_clip"):
            raise ValueError(
                f"model and activation are for a file; the folder {path} says both in "
                f"{OPEN_CLIP_CONFIG}."
            )
        document, arrays = _document(path), read_folder(path, "open_clip")
    else:
        arrays = read_checkpoint(path)
        gelu = None if activation == "open_clip" else activation
        document = None if model is None else described(model, gelu)
    try:
        return from_arrays(arrays, document, "open_clip" if activation == "open_clip" else None)
    except CheckpointError as error:
        raise named(path, error) from None


def from_arrays(
    arrays: Mapping[str, np.ndarray],
    document: Mapping[str, Any] | None,
    activation: OpenCLIPs | None = None,
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Converts arrays by OpenCLIP's names, given the content of their `open_clip_config.json`.

    `activation` may be "open_clip", as for `from_open_clip`.

    Raises:
        CheckpointError: the configuration is missing or not possible, or doesn't fit the arrays.
    """
    check_arrays(arrays)
    arrays = model_arrays(arrays)
    is_siglip = LATENT in arrays and document is not None
    if not is_siglip:
        check_open_clip(arrays)
    if document is None:
        raise CheckpointError(
            f"does not say which model it holds: give a folder with {OPEN_CLIP_CONFIG}, or model= "
            f'with the name of an OpenCLIP architecture and its activation, such as "ViT-H-14" and '
            f'"gelu", or with the name of its weights, such as "ViT-H-14/dfn5b"'
        )
    return with_config(from_document(document, activation), arrays)


def with_config(
    config: CLIPConfig, arrays: Mapping[str, np.ndarray], description: str = "model_cfg"
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Converts arrays by OpenAI's or OpenCLIP's names, given the model's configuration.

    Args:
        config: the configuration.
        arrays: the arrays by name.
        description: where the configuration stands, for messages.

    Raises:
        CheckpointError: it doesn't fit the arrays; lists all problems.
    """
    check_arrays(arrays)
    is_siglip = LATENT in arrays
    if isinstance(config, SigLIPConfig) != is_siglip:
        raise CheckpointError(
            "its configuration and its arrays contradict each other: one of them is SigLIP's "
            f"({LATENT} in the arrays, timm_model_name in the configuration), the other isn't"
        )
    if not is_siglip:
        check_open_clip(arrays)
    arrays = with_one_table(arrays)
    arrays = {name: _scalar(name, array) for name, array in arrays.items() if name not in IGNORED}
    if config.logit_bias is not None and "logit_bias" not in arrays:
        arrays["logit_bias"] = np.zeros((), np.float32)
    try:
        check_blocks(config, len(arrays))
    except ValueError as error:
        raise CheckpointError(
            f"{description} does not fit the arrays: {error}. Take both from the same source"
        ) from None
    prefix = PREFIX if any(name.startswith(PREFIX) for name in arrays) else ""
    table = OPEN_CLIP_PREFIXED if prefix else OPEN_CLIP
    if is_siglip:
        prefix, table = PREFIX, OPEN_CLIP_SIGLIP
        if POSITIONS in arrays and arrays[POSITIONS].ndim == 3:
            arrays[POSITIONS] = arrays[POSITIONS][0]
    notes = _contradictions(config, arrays, prefix, description)
    return config, to_tree(parameter_shapes(config), arrays, table, notes, description)


def to_open_clip(
    config: CLIPConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    replace: bool = False,
) -> None:
    """Writes a folder that `open_clip.create_model_and_transforms("local-dir:...")` loads.

    The write is atomic.

    Args:
        config: the architecture that the parameters belong to.
        params: nested dicts of NumPy or JAX arrays, whose dtypes are kept.
        folder: the folder, which is created with its parents.
        replace: whether to replace such a folder that exists.

    Raises:
        CheckpointError: OpenCLIP can't express the model, or the parameters don't fit; lists all
            reasons. Nothing is written then.
        FileExistsError: the folder exists.
        OSError: it can't be written; nothing is left behind.
    """
    document = to_document(config)
    arrays = from_tree(config, params, OPEN_CLIP)
    text = json.dumps(document, indent=2) + "\n"
    write_folder(folder, {OPEN_CLIP_CONFIG: text.encode()}, WEIGHTS, arrays, replace=replace)


def _document(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / OPEN_CLIP_CONFIG)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {OPEN_CLIP_CONFIG}, which describes the model: download or copy it "
            f"too, or give the file of weights and model="
        ) from None


def described(
    model: str | Mapping[str, Any], activation: Activation | None = None
) -> Mapping[str, Any]:
    """Returns the `open_clip_config.json` of a model that the caller names, as `from_open_clip`.

    Raises:
        ValueError: `model` or `activation` is missing or unknown.
    """
    if not isinstance(model, str):
        if activation is not None:
            raise ValueError("activation is for an architecture's name; the dictionary says it.")
        return model
    if activation is not None:
        check_activation(activation)
    tag = lookup_tag(model) if "/" in model else None
    if tag is not None:
        if activation is not None:
            raise ValueError(f"activation is for an architecture; {model} says its own.")
        return tag.open_clip_config()
    known = architectures()
    if model not in known:
        raise ValueError(
            f"model must be the name of one of OpenCLIP's architectures, {', '.join(known)}. "
            f"Got {model!r}."
        )
    if tags := [tag for tag in pretrained_tags(model) if tag.activation == "gelu_tanh"]:
        if activation not in (None, "gelu_tanh"):
            raise ValueError(f"{model} was trained with gelu_tanh. Got {activation!r}.")
        return tags[0].open_clip_config()
    document = dict(known[model])
    if not document.get("quick_gelu"):
        if activation is None:
            raise ValueError(
                f"activation must be given: weights of {model} were trained with either. It is one "
                f"of {', '.join(get_args(Activation))}."
            )
        document["quick_gelu"] = activation == "quick_gelu"
        if activation == "gelu_tanh":
            for tower in ("vision_cfg", "text_cfg"):
                document[tower] = {**document[tower], "act_kwargs": {"approximate": "tanh"}}
    elif activation not in (None, "quick_gelu"):
        raise ValueError(f"{model} has the activation quick_gelu. Got {activation!r}.")
    return {"model_cfg": document}


def _scalar(name: str, array: np.ndarray) -> np.ndarray:
    return array.reshape(()) if name in SCALARS and array.shape == (1,) else array


def _contradictions(
    config: CLIPConfig, arrays: Mapping[str, Any], prefix: str, description: str
) -> list[str]:
    """Returns what the configuration says otherwise than all of the arrays together."""
    places = {
        "transformer/resblocks": ("text_cfg.layers", f"{prefix}transformer.resblocks."),
        "visual/transformer/resblocks": ("vision_cfg.layers", "visual.transformer.resblocks."),
    }
    if isinstance(config, SigLIPConfig):
        places["visual/transformer/resblocks"] = (
            "vision_cfg.timm_model_name",
            "visual.trunk.blocks.",
        )
    problems = []
    for path, count in blocks(config).items():
        key, start = places.get(path, (f"vision_cfg.layers ({path})", path.replace("/", ".") + "."))
        if (there := count_blocks(arrays, start)) != count:
            problems.append(f"! {key}: {description} says {count}, the arrays have {there}")
    if config.logit_bias is None and "logit_bias" in arrays:
        problems.append(f"! init_logit_bias: not in {description}, but there is a logit_bias")
    return problems
