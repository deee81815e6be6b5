"""`clip-jax eval`: zero-shot classification, retrieval and the linear probe on one's own data."""

import argparse
import errno
from typing import Any

from clip_jax.cli.arguments import (
    BEGINS_AGAIN,
    add_batch_size,
    add_columns,
    add_json,
    add_model,
    add_pictures,
    add_where,
    load_options,
    pictures_of,
    positive_float,
    positive_int,
)
from clip_jax.cli.asking import may_write
from clip_jax.cli.figures import report_left_out, show_classification, show_retrieval
from clip_jax.cli.output import tell_what_it_knows

# Files that show that a folder is a report.
OWN = ("report.html",)

_DATA = (
    "a folder with a folder of pictures for each class; WebDataset's .tar files, whose members "
    "that end in .cls are the labels; a .csv, .tsv, .jsonl or .parquet table; or the output of "
    "clip-jax embed, with a column of labels"
)
_MODEL = "as for classify (default: that of the embedding job, else ViT-B/32)"
_CLASSIFICATION = "the figures of each class, the confusion matrix and the mistakes"
_BATCH = "pictures that are computed at one time"


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "eval",
        help="evaluate a model on labelled or captioned pictures",
        description="Evaluate a model as the CLIP paper does: by zero-shot classification, by "
        "retrieval of captions and pictures, or by a linear classifier of its features.",
        epilog="example: clip-jax eval zeroshot pictures --model ViT-B/32",
    )
    kinds = parser.add_subparsers(title="evaluations", metavar="KIND", required=True)
    _add_zeroshot(kinds)
    _add_retrieval(kinds)
    _add_probe(kinds)


def _add_zeroshot(kinds: Any) -> None:
    parser = kinds.add_parser(
        "zeroshot",
        help="classify by the names of the classes",
        description="Classify labelled pictures by the names of the classes alone, and print the "
        "accuracy. Pictures that can't be read, and rows that an embedding job lacks, are "
        "reported and left out; the exit status is then 1.",
        epilog="example: clip-jax eval zeroshot pictures --templates templates.txt --report out",
    )
    parser.add_argument("data", metavar="DATA", help=_DATA)
    add_model(parser, _MODEL)
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="one class a line: its name; or its label, a tab and its name (default: the labels "
        "are the names)",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help="one sentence a line, with {} where the name goes (default: a photo of a {}.)",
    )
    _add_common(parser)
    _add_report(parser, _CLASSIFICATION)
    parser.set_defaults(kept=BEGINS_AGAIN, run=run_zeroshot)


def _add_retrieval(kinds: Any) -> None:
    parser = kinds.add_parser(
        "retrieval",
        help="search for captions by pictures and for pictures by captions",
        description="Print how often a picture's caption is among the 1, 5 and 10 captions most "
        "similar to it, and how often a caption's picture is among the most similar pictures. A "
        "picture may have several captions.",
        epilog="example: clip-jax eval retrieval 'coco-{00..04}.tar' --model ViT-B/32",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="WebDataset's .tar files, tables of captions or a folder with one, or a folder of "
        "pictures with .txt files beside them, as for training; or the output of clip-jax embed "
        "--what both",
    )
    add_model(parser, _MODEL)
    add_columns(parser)
    add_where(parser)
    add_pictures(parser)
    add_batch_size(parser, _BATCH)
    add_json(parser)
    _add_report(parser, "the recalls, the ranks and the worst mistakes of each direction")
    parser.set_defaults(kept=BEGINS_AGAIN, run=run_retrieval)


def _add_probe(kinds: Any) -> None:
    parser = kinds.add_parser(
        "probe",
        help="train a linear classifier of the features",
        description="Fit a logistic regression to the features of a model, with the paper's search "
        "for the strength of the regularisation, and print its accuracy on other rows.",
        epilog="example: clip-jax eval probe train --test test --features before",
    )
    parser.add_argument("data", metavar="DATA", help=f"what to fit to: {_DATA}")
    parser.add_argument(
        "--test",
        metavar="DATA",
        help="what to test on (default: every fifth row of each class, which is then left out of "
        "the fit)",
    )
    add_model(parser, _MODEL)
    parser.add_argument(
        "-C",
        type=positive_float,
        metavar="C",
        help="the inverse strength of the regularisation (default: searched for from 1e-6 to 1e6 "
        "on every fifth row of each class; the fit is then to all rows)",
    )
    parser.add_argument(
        "--features",
        choices=("before", "after"),
        default="after",
        help="before a ViT's projection, as in the paper, or after it (default: %(default)s)",
    )
    parser.add_argument(
        "--max-iter",
        type=positive_int,
        default=1000,
        metavar="N",
        help="the most iterations that a fit may take (default: %(default)s)",
    )
    parser.add_argument(
        "--tol",
        type=positive_float,
        default=1e-4,
        metavar="X",
        help="end a fit when no entry of the gradient is larger (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="of the fit (default: %(default)s)",
    )
    _add_common(parser)
    _add_report(parser, _CLASSIFICATION)
    parser.set_defaults(kept=BEGINS_AGAIN, run=run_probe)


def _add_common(parser: Any) -> None:
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="of shards, tables and embeddings (default: cls in shards, else label)",
    )
    parser.add_argument(
        "--image-column", default="image", metavar="NAME", help="of tables (default: %(default)s)"
    )
    add_where(parser)
    add_pictures(parser)
    add_batch_size(parser, _BATCH)
    add_json(parser)


def _add_report(parser: Any, contents: str) -> None:
    parser.add_argument(
        "--report",
        metavar="DIR",
        help=f"write report.html, a page with {contents}; figures, tables and drawings are also "
        "written as files of their own",
    )


def run_zeroshot(args: argparse.Namespace) -> int:
    """Evaluates, prints the figures, and writes the report."""
    from clip_jax.evaluate import zeroshot
    from clip_jax.evaluate.classes import read_lines
    from clip_jax.evaluate.classifier import TEMPLATES
    from clip_jax.evaluate.documents import classification_document

    class_names = read_lines(args.classes) if args.classes else None
    templates = read_lines(args.templates) if args.templates else TEMPLATES
    _prepare_report(args)
    result = zeroshot(
        args.data,
        args.model,
        class_names=class_names,
        templates=templates,
        label_column=args.label_column,
        image_column=args.image_column,
        where=args.where,
        pictures=pictures_of(args),
        batch_size=args.batch_size,
        **load_options(args),
    )
    show_classification(classification_document(result), args.json)
    _write_report(args, f"Zero-shot: {args.data}", result)
    return report_left_out(result.left_out)


def run_retrieval(args: argparse.Namespace) -> int:
    """Evaluates, prints the recalls, and writes the report."""
    from clip_jax.evaluate import retrieval
    from clip_jax.evaluate.documents import retrieval_document
    from clip_jax.sources import Columns

    _prepare_report(args, draws=False)
    result = retrieval(
        args.data,
        args.model,
        columns=Columns(args.image_column, args.caption_column, args.key_column),
        where=args.where,
        pictures=pictures_of(args),
        batch_size=args.batch_size,
        **load_options(args),
    )
    show_retrieval(retrieval_document(result), args.json)
    _write_report(args, f"Retrieval: {args.data}", result)
    return report_left_out(result.left_out)


def run_probe(args: argparse.Namespace) -> int:
    """Fits, evaluates, prints the figures, and writes the report."""
    from clip_jax.evaluate import probe
    from clip_jax.evaluate.documents import classification_document

    _prepare_report(args)
    result = probe(
        args.data,
        args.model,
        test=args.test,
        C=args.C,
        features=args.features,
        max_iter=args.max_iter,
        tol=args.tol,
        dtype=args.dtype,
        label_column=args.label_column,
        image_column=args.image_column,
        where=args.where,
        pictures=pictures_of(args),
        batch_size=args.batch_size,
        **load_options(args),
    )
    show_classification(classification_document(result), args.json)
    _write_report(args, f"Linear probe: {args.data}", result)
    return report_left_out(result.left_out)


def _prepare_report(args: argparse.Namespace, draws: bool = True) -> None:
    """Makes the report's folder; what prevents that is said before hours of work.

    Raises:
        FileExistsError: it holds other things, and the user wants it left alone.
    """
    tell_what_it_knows(args.model)
    if args.report:
        if not may_write(args.report, OWN):
            raise FileExistsError(errno.EEXIST, "is left alone: give another --report", args.report)
        from clip_jax.evaluate.report import prepare

        prepare(args.report, draws=draws)


def _write_report(args: argparse.Namespace, title: str, result: Any) -> None:
    if args.report:
        from clip_jax.evaluate.report import write_report

        write_report(args.report, title, result)
