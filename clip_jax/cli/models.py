"""`clip-jax models`: the names that can be loaded."""

import argparse
from typing import Any

from clip_jax.cli.arguments import add_json
from clip_jax.cli.output import print_json, print_table


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "models",
        help="list the models that have names",
        description="List the models that have names, and whether this machine has their weights.",
        epilog="example: clip-jax models --json",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="list OpenCLIP's weights instead, such as ViT-H-14/dfn5b, and what each needs",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    if args.all:
        return _run_all(args)
    from clip_jax.catalog import CATALOG
    from clip_jax.weights import cached

    found = [
        {
            "name": entry.name,
            "parameters": entry.num_parameters,
            "image_size": entry.config.vision.image_size,
            "embed_dim": entry.config.embed_dim,
            "cached": cached(entry.name),
        }
        for entry in CATALOG.values()
    ]
    if args.json:
        print_json(found)
    else:
        print_table(
            ("name", "parameters", "image", "D", "cached"),
            [
                (
                    model["name"],
                    f"{model['parameters']:,}",
                    str(model["image_size"]),
                    str(model["embed_dim"]),
                    "yes" if model["cached"] else "no",
                )
                for model in found
            ],
        )
    return 0


def _run_all(args: argparse.Namespace) -> int:
    from clip_jax.open_clip_architectures import architectures
    from clip_jax.open_clip_catalog import pretrained_tags

    found = [
        {
            "name": tag.name,
            "image_size": architectures()[tag.architecture]["vision_cfg"]["image_size"],
            "embed_dim": architectures()[tag.architecture]["embed_dim"],
            "activation": tag.activation,
            "mean": tag.mean,
            "std": tag.std,
            "interpolation": tag.interpolation,
            "resize": tag.resize,
            "source": tag.repository or tag.url,
        }
        for tag in pretrained_tags()
    ]
    if args.json:
        print_json(found)
        return 0
    columns = ("name", "image_size", "embed_dim", "activation", "interpolation", "resize")
    print_table(
        ("name", "image", "D", "activation", "filter", "resize", "mean", "std", "from"),
        [
            (
                *(str(model[column]) for column in columns),
                *(" ".join(f"{x:.3g}" for x in model[column]) for column in ("mean", "std")),
                model["source"] if "://" not in model["source"] else "a release on GitHub",
            )
            for model in found
        ],
    )
    return 0
