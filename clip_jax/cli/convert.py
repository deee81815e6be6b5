"""`clip-jax convert`: converts checkpoints between our format and other libraries'."""

import argparse
import errno
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clip_jax.cli.arguments import BEGINS_AGAIN, add_bare_file
from clip_jax.cli.output import printable
from clip_jax.config import CLIPConfig, ViTConfig
from clip_jax.image_size import sides_of

PYTORCH = (".pt", ".pth")
FORMATS = ("native", "openai", "huggingface", "open_clip")


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint to or from another library's format",
        description="Convert a model: from a name that `clip-jax models` lists, a file of weights, "
        "or a folder of clip_jax, of Hugging Face's transformers or of OpenCLIP (CLIP or SigLIP); "
        "to a native folder (config.json and model.safetensors), a folder of one of these "
        "libraries, "
        "or a .pt state dictionary with OpenAI's names, which needs PyTorch. All numbers stay as "
        "they are, to the bit.",
        epilog="example: clip-jax convert ViT-B-32.pt vit-b-32 && "
        "clip-jax convert vit-b-32 vit-b-32-hf --to huggingface",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a name, a file of weights, or a folder; a file of big_vision (.npz) also by its "
        "address, such as gs://",
    )
    parser.add_argument(
        "target", metavar="DST", type=Path, help="a folder, or a file whose name ends with .pt"
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        help="the format of DST (default: openai if its name ends with .pt, else native)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="which model an OpenCLIP file holds: an architecture such as ViT-H-14, together with "
        "--activation, or weights such as ViT-H-14/dfn5b",
    )
    add_bare_file(parser)
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.set_defaults(run=run, kept=BEGINS_AGAIN)


def run(args: argparse.Namespace) -> int:
    """Converts, and prints what was written."""
    source, target = Path(args.source), args.target
    is_name = not source.exists()
    if is_name and not _is_model(args.source) and not _is_address(args.source):
        reason = "no such file or folder, nor a model's name (clip-jax models)"
        raise FileNotFoundError(errno.ENOENT, reason, args.source)
    to = args.to or ("openai" if target.suffix in PYTORCH else "native")
    _check_kinds(source, target, to, args.model or args.activation or args.num_heads, is_name)
    if source.is_file() and to == "openai" and not (args.to or args.model):
        raise argparse.ArgumentError(
            None, f"{source} is a file, so DST must be a folder, or --to given. Got {target}"
        )
    _check_target(target, to, args.force)

    from clip_jax.weights import read_model
    from clip_jax.weights.finding import find
    from clip_jax.weights.reading import read_found

    try:
        if is_name:
            family, config, params = read_found(find(args.source))
        else:
            family, config, params = read_model(
                source, model=args.model, activation=args.activation, num_heads=args.num_heads
            )
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error).rstrip(".")) from None
    if family == "native" and to == "native" and not is_name:
        raise argparse.ArgumentError(
            None, f"{source} is a native folder already: give --to, or a DST that ends with .pt"
        )
    has_own = not source.is_file() and not _is_address(args.source)
    options = _tokenizer_options(args.source, to) if has_own else {}
    # Without --force, a target that another process makes meanwhile isn't replaced either.
    _writer(to)(config, params, target, replace=args.force, **options)
    print(
        f"{printable(str(target))}: {_description(config, params)}, {_size(target) / 1e6:,.1f} MB"
    )
    return 0


def _is_model(name: str) -> bool:
    """Whether a text that is no path may be the name of a model."""
    from clip_jax.catalog import CATALOG

    is_file = Path(name).suffix in (*PYTORCH, ".safetensors", ".bin", ".npz", ".msgpack")
    if "/" not in name or is_file:
        return name in CATALOG
    from clip_jax.open_clip_catalog import lookup_tag
    from clip_jax.weights.hub import is_repository_name

    return name in CATALOG or bool(lookup_tag(name)) or is_repository_name(name)


def _is_address(name: str) -> bool:
    """Whether it is an address of a file that is read from where it is."""
    if "://" not in name:
        return False
    from clip_jax.convert.npz import is_npz
    from clip_jax.storage import is_remote

    return is_remote(name) and is_npz(name)


def _check_target(target: Path, to: str, may_replace: bool) -> None:
    """Raises FileExistsError if something is at the target that is not to be replaced."""
    if target.exists() and not _is_empty_folder(target):
        configs = [target / name for name in ("config.json", "open_clip_config.json")]
        if to != "openai" and target.is_dir() and not any(map(os.path.lexists, configs)):
            reason = "is a folder of something else than a model: choose another name"
            raise FileExistsError(errno.EEXIST, reason, str(target))
        if not may_replace:
            raise FileExistsError(errno.EEXIST, "exists already; --force replaces it", str(target))
    if to == "openai":
        _check_file(target)


def _check_kinds(
    source: Path, target: Path, to: str, says_model: str | None, is_name: bool
) -> None:
    if (source.is_dir() or is_name) and says_model:
        what = "name" if is_name else "folder"
        raise argparse.ArgumentError(
            None,
            f"--model, --activation and --num-heads are for files; the {what} {source} knows its "
            f"own",
        )
    is_file = target.suffix in (*PYTORCH, ".safetensors")
    if to == "openai" and target.suffix not in PYTORCH:
        raise argparse.ArgumentError(None, f"the file DST must end with .pt. Got {target}")
    if to != "openai" and is_file:
        raise argparse.ArgumentError(None, f"DST must be a folder. Got {target}")


def _check_file(target: Path) -> None:
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: name a file in it", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(target.parent))


def _writer(to: str) -> Callable[..., None]:
    from clip_jax.convert import to_huggingface, to_open_clip
    from clip_jax.weights import save_parameters

    return {
        "native": save_parameters,
        "openai": _write_pytorch,
        "huggingface": to_huggingface,
        "open_clip": to_open_clip,
    }[to]


def _tokenizer_options(source: str, to: str) -> dict[str, Any]:
    """Returns what a writer needs to keep a model's tokenizer, if it isn't CLIP's own.

    Warns where the format has no place for it.
    """
    from clip_jax.errors import CheckpointError
    from clip_jax.messages import some
    from clip_jax.model_tokenizer import Tokenizer
    from clip_jax.weights import load_tokenizer

    try:
        tokenizer = load_tokenizer(source)
    except CheckpointError:  # another than CLIP's, which the configuration says
        return {}
    if to == "native":
        return {"tokenizer_files": tokenizer.files()}
    if isinstance(tokenizer, Tokenizer) and not tokenizer.added:
        return {}
    if to == "huggingface":
        return {"tokenizer": tokenizer}
    if not isinstance(tokenizer, Tokenizer):
        return {}
    told = some([token.text for token in tokenizer.added], 5)
    warnings.warn(
        f"this format has no place for the tokens that were added to CLIP's ({told}): keep the "
        f"folder that they are from, too",
        stacklevel=3,
    )
    return {}


def _write_pytorch(
    config: CLIPConfig, params: Mapping[str, Any], target: Path, *, replace: bool
) -> None:
    from clip_jax.convert import to_pytorch, write_pytorch

    write_pytorch(to_pytorch(config, params), target, replace=replace)
    for lost in _unsaid(config):
        warnings.warn(f"a .pt file can't say {lost}", stacklevel=2)


def _unsaid(config: CLIPConfig) -> list[str]:
    """Returns what of this model a state dictionary can't say: what differs from OpenAI's."""
    lost = []
    if (activation := config.text_activation) != "quick_gelu":
        lost.append(
            f"which GELU the model has: give --activation {activation} with it, or "
            f'activation="{activation}" to clip_jax.load'
        )
    towers = [config.text, *([config.vision] if isinstance(config.vision, ViTConfig) else [])]
    if any(tower.num_heads != max(tower.width // 64, 1) for tower in towers):
        heads = f"{config.vision.num_heads},{config.text.num_heads}"
        lost.append(
            f"how many heads there are: give --num-heads {heads} with it, or num_heads=({heads}) "
            f"to clip_jax.load"
        )
    if config.text.tokenizer is not None:
        lost.append("that its ids are another tokenizer's than CLIP's: keep the folder")
    if config.pixels != type(config.pixels)():
        lost.append("how the pixels are prepared, if not as OpenAI's: keep the folder")
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
    sides = dict.fromkeys(sides_of(vision.image_size))  # one if they are the same
    tower = (
        f"ViT of {vision.num_layers} layers and width {vision.width}, patches of "
        f"{vision.patch_size}"
        if isinstance(vision, ViTConfig)
        else f"ResNet of {vision.stage_depths} blocks and width {vision.width}"
    )
    return (
        f"{tower}, {' x '.join(map(str, sides))} pixels; text of {config.text.num_layers} layers "
        f"and width {config.text.width}; D {config.embed_dim}; {config.activation}; {count:,} "
        f"parameters"
    )


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
