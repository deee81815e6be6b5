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
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
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
