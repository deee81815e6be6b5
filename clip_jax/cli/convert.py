"""`clip-jax convert`: converts checkpoints to native folders and back."""

import argparse
import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from clip_jax.cli.output import printable
from clip_jax.config import Activation, CLIPConfig, ViTConfig

PYTORCH = (".pt", ".pth")


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint to a native folder, or back to .pt",
        description="Convert a .pt or .safetensors checkpoint with the official layout to a native "
        "folder (config.json and model.safetensors), or a native folder to a .pt state dictionary, "
        "which needs PyTorch. All numbers stay as they are, to the bit.",
        epilog="example: clip-jax convert ViT-B-32.pt vit-b-32 && "
        "clip-jax convert vit-b-32 copy.pt",
    )
    parser.add_argument("source", metavar="SRC", type=Path, help="a checkpoint or a native folder")
    parser.add_argument(
        "target", metavar="DST", type=Path, help="a folder, or a file whose name ends with .pt"
    )
    parser.add_argument(
        "--activation",
        choices=get_args(Activation),
        help="the GELU that a checkpoint was trained with, which its file doesn't say (default: "
        "quick_gelu, as in every OpenAI model)",
    )
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Converts, and prints what was written."""
    source, target = args.source, args.target
    if not source.exists():
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", str(source))
    _check_kinds(source, target, args.activation)
    if not args.force and target.exists() and not _is_empty_folder(target):
        raise FileExistsError(errno.EEXIST, "exists already; --force replaces it", str(target))
    # Without --force, a target that another process makes meanwhile isn't replaced either.
    if source.is_dir():
        config, params = _export(source, target, args.force)
    else:
        config, params = _import(source, target, args.activation or "quick_gelu", args.force)
    print(
        f"{printable(str(target))}: {_description(config, params)}, {_size(target) / 1e6:,.1f} MB"
    )
    return 0


def _check_kinds(source: Path, target: Path, activation: str | None) -> None:
    is_file = target.suffix in (*PYTORCH, ".safetensors")
    if source.is_dir() and target.suffix not in PYTORCH:
        raise argparse.ArgumentError(
            None, f"{source} is a folder, so DST must end with .pt. Got {target}"
        )
    if source.is_dir() and activation:
        raise argparse.ArgumentError(
            None, f"--activation is for checkpoints; the folder {source} knows its own"
        )
    if not source.is_dir() and is_file:
        raise argparse.ArgumentError(
            None, f"{source} is a file, so DST must be a folder. Got {target}"
        )


def _import(
    source: Path, target: Path, activation: Activation, force: bool
) -> tuple[CLIPConfig, Mapping[str, Any]]:
    from clip_jax.convert import from_pytorch, read_checkpoint
    from clip_jax.errors import CheckpointError
    from clip_jax.weights import save_parameters

    arrays = read_checkpoint(source)
    try:
        config, params = from_pytorch(arrays, activation)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    save_parameters(config, params, target, replace=force)
    return config, params


def _export(source: Path, target: Path, force: bool) -> tuple[CLIPConfig, Mapping[str, Any]]:
    from clip_jax.convert import to_pytorch, write_pytorch
    from clip_jax.weights import read_native

    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file in it", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))
    config, params = read_native(source)
    write_pytorch(to_pytorch(config, params), target, replace=force)
    for lost in _unsaid(config):
        warnings.warn(f"a .pt file can't say {lost}", stacklevel=2)
    return config, params


def _unsaid(config: CLIPConfig) -> list[str]:
    """Returns what of this model a state dictionary can't say: what differs from OpenAI's."""
    lost = []
    if config.activation != "quick_gelu":
        lost.append(
            f"which GELU the model has: give --activation {config.activation} with it, or "
            f'activation="{config.activation}" to clip_jax.load'
        )
    towers = [config.text, *([config.vision] if isinstance(config.vision, ViTConfig) else [])]
    if any(tower.num_heads != max(tower.width // 64, 1) for tower in towers):
        lost.append("how many heads there are, if they are not 64 wide: keep the folder")
    return lost


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not os.listdir(path)


def _description(config: CLIPConfig, params: Mapping[str, Any]) -> str:
    import numpy as np

    from clip_jax.nn import flatten

    statistics = ("mean", "var", "num_batches_tracked")
    count = sum(
        np.size(array)
        for path, array in flatten(params).items()
        if path.rpartition("/")[2] not in statistics
    )
    vision = config.vision
    tower = (
        f"ViT of {vision.num_layers} layers and width {vision.width}, patches of "
        f"{vision.patch_size}"
        if isinstance(vision, ViTConfig)
        else f"ResNet of {vision.stage_depths} blocks and width {vision.width}"
    )
    return (
        f"{tower}, {vision.image_size} pixels; text of {config.text.num_layers} layers and width "
        f"{config.text.width}; D {config.embed_dim}; {config.activation}; {count:,} parameters"
    )


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
