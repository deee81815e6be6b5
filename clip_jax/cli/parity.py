"""`clip-jax parity`: compares a model's numbers in JAX with those in PyTorch."""

import argparse
import math
from typing import Any

from clip_jax.cli.arguments import BEGINS_AGAIN, add_bare_file, add_json, image_size
from clip_jax.cli.output import complain, print_json, print_table


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "parity",
        help="compare a model's numbers with PyTorch's",
        description="Load the same weights in JAX and in PyTorch, run both on the same pictures "
        "and captions, and print how much each stage differs: max |diff|, and the L2 norm of the "
        "difference over that of PyTorch's values. The exit status is 1 if a stage differs by "
        "more than its tolerance. OpenAI's files are compared with the reference package, "
        "clip-anytorch, OpenCLIP's with open_clip, Hugging Face's and text towers in single files "
        "of Stable Diffusion with transformers, native folders with one of the first two; "
        "whichever it is must be installed, with torch and torchvision.",
        epilog="example: clip-jax parity ViT-B/32",
    )
    parser.add_argument(
        "model",
        metavar="NAME_OR_PATH",
        help="as for classify --model; a native folder is exported first",
    )
    parser.add_argument(
        "--model",
        dest="of",
        metavar="NAME",
        help="which model an OpenCLIP file holds: an architecture such as ViT-H-14, together with "
        "--activation, or weights such as ViT-H-14/dfn5b",
    )
    add_bare_file(parser)
    parser.add_argument(
        "--subfolder",
        metavar="NAME",
        help="the folder in a repository or folder that holds the model; or which text tower of a "
        "single file of Stable Diffusion XL, text_encoder or text_encoder_2",
    )
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="SIZE",
        help="compare a Vision Transformer of OpenCLIP or transformers on images of another size, "
        "whose positions each library resizes in its own way",
    )
    parser.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="pictures to run on (default: made-up ones)"
    )
    add_json(parser)
    parser.set_defaults(run=run, kept=BEGINS_AGAIN)


def run(args: argparse.Namespace) -> int:
    """Compares, prints the table, and names the first stage that differs too much."""
    from clip_jax import open_image
    from clip_jax.parity import compare, find_subject, first_difference
    from clip_jax.progress import announce

    subject = find_subject(
        args.model,
        model=args.of,
        activation=args.activation,
        num_heads=args.num_heads,
        subfolder=args.subfolder,
        image_size=args.image_size,
    )
    images = [open_image(path) for path in args.images] if args.images else None
    announce("loading in JAX")
    model, preprocess, tokenizer = subject.load()
    announce(f"loading in PyTorch, with {subject.library}")
    peer = subject.load_peer()
    announce("comparing")
    rows = compare(model, preprocess, peer, images, tokenizer=tokenizer)

    culprit = first_difference(rows)
    if args.json:
        print_json(
            {
                "model": args.model,
                "peer": subject.library,
                "ok": culprit is None,
                "first_difference": culprit and culprit.stage,
                "rows": [_document(row) for row in rows],
            }
        )
    else:
        print_table(
            ("stage", "max |diff|", "relative", "tolerance", ""),
            [
                (
                    row.stage,
                    f"{row.max_abs:.2e}",
                    f"{row.rel:.2e}",
                    f"{row.measure} {row.tolerance:.0e}" if row.tolerance else "exact",
                    "PASS" if row.ok else "FAIL",
                )
                for row in rows
            ],
        )
    if culprit is None:
        return 0
    found = culprit.max_abs if culprit.measure == "absolute" else culprit.rel
    complain(
        f"JAX and PyTorch part at {culprit.stage!r}: {culprit.measure} difference {found:.2e}, "
        f"tolerated {culprit.tolerance:.0e}"
    )
    return 1


def _document(row: Any) -> dict[str, Any]:
    def number(x: float) -> float | None:
        return x if math.isfinite(x) else None  # JSON has no NaN

    return {
        "stage": row.stage,
        "max_abs": number(row.max_abs),
        "rel": number(row.rel),
        "tolerance": row.tolerance,
        "measure": row.measure,
        "ok": row.ok,
    }
