"""`clip-jax serve`: a page in the browser to search what was embedded."""

import argparse
from typing import Any

from clip_jax.cli.arguments import add_model, load_options
from clip_jax.cli.output import tell_what_it_knows


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a page to search what was embedded",
        description="Serve a page, and the same as JSON, to search what clip-jax embed has "
        "written to a folder: by texts, by pictures that are dropped on the page, and for more "
        "like one that was found. It needs pip install 'clip-jax-flax[serve]'.",
        epilog="example: clip-jax serve embeddings --port 8000",
    )
    parser.add_argument("folder", metavar="DIR", help="the --out folder of clip-jax embed")
    add_model(parser, "where the model is now (default: where it was when the folder was written)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen on this address; others than this machine's own, such as 0.0.0.0, need "
        "--token (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=7860,
        metavar="N",
        help="listen on this port; 0 for a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--token",
        metavar="SECRET",
        help="answer only who shows it: browsers that have opened /?token=SECRET once, and "
        "programs that send the header Authorization: Bearer SECRET",
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="compare all rows, although there is an index for approximate search",
    )
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="download pictures that a table of the input gives as addresses",
    )
    parser.set_defaults(run=run, kept="nothing is lost: the same command serves the page again")


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped."""
    from clip_jax.serve import serve

    tell_what_it_knows(args.model)
    options = load_options(args)
    serve(
        args.folder,
        args.model,
        host=args.host,
        port=args.port,
        token=args.token,
        exact=args.exact,
        fetch=args.fetch,
        **options,
    )
    return 0


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) < 1 << 16):
        raise argparse.ArgumentTypeError(f"expected a port, from 0 to 65535. Got {text!r}")
    return int(text)
