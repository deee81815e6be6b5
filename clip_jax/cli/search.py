"""`clip-jax search`: finds the embeddings most similar to a text or a picture."""

import argparse
import os
import warnings
from typing import Any

from clip_jax.cli.arguments import (
    BEGINS_AGAIN,
    add_json,
    add_model,
    file_name,
    load_options,
    positive_int,
)
from clip_jax.cli.output import print_json, print_table, tell_what_it_knows


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "search",
        help="search what was embedded",
        description="Compare a text or a picture with all embeddings that clip-jax embed has "
        "written to a folder, and print the most similar, best first.",
        epilog="example: clip-jax search embeddings 'a red bicycle' -k 20 --html page.html",
    )
    parser.add_argument("folder", metavar="DIR", help="the --out folder of clip-jax embed")
    parser.add_argument("query", metavar="QUERY", help="a text; with --image, a picture's file")
    parser.add_argument("--image", action="store_true", help="search for a picture")
    parser.add_argument(
        "--fit",
        choices=("crop", "pad", "squash"),
        help="how the picture becomes a square (default: as those in the folder did)",
    )
    add_model(parser, "where the model is now (default: where it was when the folder was written)")
    parser.add_argument(
        "-k", type=positive_int, default=10, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="look only among the candidates that the index names, which clip-jax index has built",
    )
    add_json(parser)
    parser.add_argument(
        "--html",
        type=file_name,
        metavar="FILE",
        help="write a page with thumbnails; it needs no other file",
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="for the page, download pictures that a table of the input gives as addresses",
    )
    parser.set_defaults(run=run, kept=BEGINS_AGAIN)


def run(args: argparse.Namespace) -> int:
    """Searches, prints the table, and writes the page; the status is 1 if rows are missing."""
    from pathlib import Path

    from clip_jax.embed import Incomplete
    from clip_jax.embed.results import finished_job
    from clip_jax.progress import announce
    from clip_jax.search import contact_sheet, search
    from clip_jax.storage import absolute, folder, is_remote, storage

    tell_what_it_knows(args.model)
    announce("searching")
    if args.image and is_remote(args.query):
        raise argparse.ArgumentError(
            None, f"--image takes a file; download {args.query} first, and give the file"
        )
    query = Path(args.query) if args.image else args.query
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Incomplete)
        hits = search(
            args.folder,
            args.model,
            query,
            args.k,
            fit=args.fit,
            approximate=args.approximate,
            **load_options(args),
        )
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    lacks_rows = any(getattr(warning.message, "rows", 0) for warning in caught)
    job = finished_job(folder(args.folder))
    try:
        if args.html:
            page = contact_sheet(
                hits,
                os.path.basename(args.query) if args.image else args.query,
                query_image=os.path.abspath(args.query) if args.image else None,
                image_column=job["image_column"],
                source=job.get("source"),
                fetch=args.fetch,
                facts=_facts(args, job),
            )
            storage(args.html).write(absolute(args.html), page.encode(errors="backslashreplace"))
    finally:  # also if the page fails; but after it, since `| head` ends the process
        _print(hits, args.json)
    return 1 if lacks_rows else 0


def _facts(args: argparse.Namespace, job: dict[str, Any]) -> dict[str, str | None]:
    """Returns what the page says of the search."""
    from clip_jax.pages import now
    from clip_jax.version import __version__

    return {
        "Embeddings": args.folder,
        "Input": job.get("source"),
        "Model": args.model or job["model"] or "given as an object",
        "Fingerprint": job["identity"]["model"][:16],
        "Made": f"{now().replace('T', ' ')}, by clip_jax {__version__}",
    }


def _print(hits: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(hits)
        return
    has_captions = any(hit.get("caption") for hit in hits)
    header = ("score", "key", "caption") if has_captions else ("score", "key")
    rows = [(f"{hit['score']:.4f}", hit["key"], hit.get("caption") or "") for hit in hits]
    print_table(header, [row[: len(header)] for row in rows], left=len(header))
