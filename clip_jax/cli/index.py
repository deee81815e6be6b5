"""`clip-jax index`: builds an index for approximate search over what was embedded."""

import argparse
import warnings
from typing import Any

from clip_jax.cli.arguments import BEGINS_AGAIN, positive_float, positive_int

# As `clip_jax.search.kinds` and `clip_jax.search.build` have them, which take their time to import.
KINDS = ("flat", "ivf", "sq8", "pq")
MEMORY = 4.0


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "index",
        help="index what was embedded, for faster search",
        description="Build an index of all embeddings that clip-jax embed has written to a folder, "
        "for clip-jax search --approximate. It is a file beside them, and has to be built again "
        "when there are more.",
        epilog="example: clip-jax index embeddings",
    )
    parser.add_argument("folder", metavar="DIR", help="the --out folder of clip-jax embed")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="how a row is kept: flat in float32, all of which are compared; of the others a "
        "search reads a part, ivf in float16, sq8 in a byte a dimension, pq in a byte for eight "
        "(default: flat up to 20,000 rows, ivf up to 200,000, then pq)",
    )
    parser.add_argument(
        "--memory",
        type=positive_float,
        default=MEMORY,
        metavar="GB",
        help="gigabytes that it may take (default: %(default)g)",
    )
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="threads that compute (default: all)"
    )
    parser.set_defaults(run=run, kept=BEGINS_AGAIN)


def run(args: argparse.Namespace) -> int:
    """Builds the index, and says which; the status is 1 if rows are missing."""
    from clip_jax.embed import Incomplete
    from clip_jax.search import build_index

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Incomplete)
        built = build_index(args.folder, kind=args.kind, memory=args.memory, threads=args.threads)
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    print(built)
    return 1 if any(getattr(warning.message, "rows", 0) for warning in caught) else 0
