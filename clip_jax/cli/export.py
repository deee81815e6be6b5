"""`clip-jax export`: writes a model as programs that run without this package."""

import argparse
import re
from pathlib import Path
from typing import Any

from clip_jax.cli.arguments import (
    BEGINS_AGAIN,
    Distinct,
    add_bare_file,
    add_image_size,
    load_options,
    positive_int,
)
from clip_jax.cli.output import complain, printable

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DTYPES = ("float32", "bfloat16", "float16")


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "export",
        help="write a model as programs that run without this package",
        description="Write a folder of StableHLO programs for images and for texts, their weights, "
        "a manifest, the tokenizer's files, and run.py, which embeds with them by JAX and "
        "NumPy alone; or, by --to onnx, of ONNX graphs for ONNX Runtime and others.",
        epilog="example: clip-jax export ViT-B/32 exported && python exported/run.py "
        "--images images.npy --out embeddings.npy",
    )
    parser.add_argument("model", metavar="MODEL", help="as for `clip-jax classify --model`")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder to write")
    add_bare_file(parser)
    add_image_size(parser)
    parser.add_argument(
        "--to",
        choices=("stablehlo", "onnx"),
        default="stablehlo",
        help="what to write (default: %(default)s)",
    )
    parser.add_argument(
        "--layout",
        choices=("nhwc", "nchw"),
        help="whether the channels of ONNX's images come last or first (default: nhwc)",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=PLATFORMS,
        action=Distinct,
        help="what the programs are lowered for (default: cpu cuda tpu)",
    )
    parser.add_argument(
        "--batch",
        type=positive_int,
        metavar="N",
        help="rows of a batch (default: any number)",
    )
    parser.add_argument(
        "--frames",
        type=_frame_size,
        metavar="HEIGHTxWIDTH",
        help="take uint8 frames of this size, and resize them inside, in place of images of the "
        "model's size",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype in which the towers compute (default: float32)",
    )
    parser.add_argument(
        "--normalize", action="store_true", help="divide each embedding by its L2 norm"
    )
    parser.add_argument(
        "--weights",
        choices=("beside", "inside"),
        help="in a file beside the programs, or inside both of them, below 2 GB (default: beside)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace DIR if it was exported before"
    )
    # Whose pixels and ids is no part of the programs, and whoever runs them decides.
    parser.set_defaults(run=run, kept=BEGINS_AGAIN, preprocessing="openai")


def run(args: argparse.Namespace) -> int:
    """Exports, and prints what was written."""
    from clip_jax import export, load
    from clip_jax.export.arguments import Options, as_batch, check_flatbuffers, check_replaceable
    from clip_jax.export.onnx_export import check_jax2onnx
    from clip_jax.weights.opened import LoadOptions, open_model

    to_onnx = args.to == "onnx"
    _check_options(args, to_onnx)
    # Before weights are loaded in vain, or even downloaded.
    options: dict[str, Any] = {"layout": args.layout or "nhwc"}
    try:
        if to_onnx:
            as_batch(args.batch)
        else:
            options = {
                "platforms": args.platforms or ("cpu", "cuda", "tpu"),
                "image_input": "frames" if args.frames else "pixels",
                "frame_size": args.frames,
                "dtype": args.dtype or "float32",
                "weights": args.weights or "beside",
            }
            Options.of(batch=args.batch, **options)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error).removesuffix(".")) from None
    check_jax2onnx() if to_onnx else check_flatbuffers()
    check_replaceable(args.folder, args.force)
    opened = open_model(args.model, LoadOptions(**load_options(args)), load)
    model = opened.model
    complain("tracing the towers and lowering them ...")
    common = {
        "batch": args.batch,
        "normalize": args.normalize,
        "tokenizer": opened.tokenizer,
        "replace": args.force,
    }
    try:
        if to_onnx:
            export.export_onnx(model, args.folder, **options, **common)
        else:
            export.export(model, args.folder, **options, **common)
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    for path in sorted(args.folder.iterdir()):
        print(f"{printable(str(path))}: {path.stat().st_size:,} bytes")
    return 0


def _check_options(args: argparse.Namespace, to_onnx: bool) -> None:
    others = ("platforms", "frames", "dtype", "weights") if to_onnx else ("layout",)
    for name in others:
        if getattr(args, name) is not None:
            to = "stablehlo" if to_onnx else "onnx"
            raise argparse.ArgumentError(None, f"--{name} is for --to {to} only")


def _frame_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected the height and the width in pixels, such as 480x640. Got {text!r}"
        )
    return int(match[1]), int(match[2])
