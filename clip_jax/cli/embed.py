"""`clip-jax embed`: embeds any number of pictures or texts into a folder."""

import argparse
import os
from typing import Any

from clip_jax.cli import distributed
from clip_jax.cli.arguments import (
    GOES_ON,
    add_batch_size,
    add_columns,
    add_distributed,
    add_model,
    add_pictures,
    add_stopping,
    add_where,
    load_options,
    non_negative_int,
    pictures_of,
    positive_int,
    shard,
)
from clip_jax.cli.asking import may_write
from clip_jax.cli.output import complain, tell_what_it_knows

FAILURE = 1
# Files that show that a folder is an output of this command.
OWN = ("job.json", "metadata", "img_emb", "text_emb", "errors", "stamps", "inputs")
# How long, in seconds, a process that has finished waits for the others.
A_WEEK = 7 * 24 * 3600


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "embed",
        help="embed pictures or texts",
        description="Embed any number of pictures or texts, into files of a fixed number of rows. "
        "Stopped at any moment and started again with the same command, it does only what is "
        "missing. A row that can't be embedded goes into a table of errors.",
        epilog="example: clip-jax embed pictures --out embeddings --model ViT-B/32",
    )
    parser.add_argument(
        "source",
        metavar="INPUT",
        help="a folder of pictures; WebDataset's .tar or .tar.gz, .txt, .csv, .tsv, .jsonl or "
        ".parquet files, by a path or a quoted pattern such as 'shards/{000..099}.tar'; a folder "
        "that img2dataset has written; a data set of the Hugging Face Hub, "
        "hf://datasets/owner/name; s3:// and the like, too",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the embeddings go")
    add_model(parser, "as for classify", "ViT-B/32")
    parser.add_argument(
        "--what",
        choices=("images", "texts", "both"),
        help="what to embed (default: images where there are some, else texts)",
    )
    parser.add_argument(
        "--preset",
        choices=("parity", "fast"),
        default="parity",
        help="compute in float32 as PyTorch does, or in bfloat16 (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the embeddings in the files (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("parquet", "npy"),
        default="parquet",
        help="Parquet, or arrays in clip-retrieval's layout (default: %(default)s)",
    )
    parser.add_argument(
        "--rows-per-part",
        type=positive_int,
        default=8192,
        metavar="N",
        help="rows of a file; if the process is killed, at most these are computed again (default: "
        "%(default)s)",
    )
    add_batch_size(parser, "rows that are computed at one time")
    add_columns(parser)
    parser.add_argument(
        "--columns", nargs="+", default=(), metavar="NAME", help="columns to copy to the output"
    )
    add_where(parser)
    parser.add_argument(
        "--exif-transpose",
        action="store_true",
        help="rotate pictures as their EXIF data say; the reference doesn't",
    )
    add_pictures(parser)
    parser.add_argument(
        "--formats",
        nargs="+",
        metavar="NAME",
        help="formats that may be opened as pictures, by Pillow's names, such as PSD; some start "
        "other programs or take very long (default: JPEG, PNG and other common ones)",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="do the I-th of N shares of the work, counted from 0; start one job for each",
    )
    add_distributed(parser, "share the work")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="threads that read and decode"
    )
    parser.add_argument(
        "--resize",
        choices=("host", "device"),
        default="host",
        help="who resizes pictures of a size that many have, such as frames of videos and "
        "thumbnails: device, where they are embedded, to the same bits, for an accelerator whose "
        "host can't keep up (default: %(default)s)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="who does the work: this process; or a Ray cluster, where decoding and embedding go "
        "to whatever is free (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster, or auto for the one that this machine belongs to (default: one "
        "on this machine, for the time of the job)",
    )
    parser.add_argument(
        "--encoders",
        type=positive_int,
        metavar="N",
        help="how many processes of the cluster embed (default: one per accelerator, or per "
        "machine if there are none)",
    )
    parser.add_argument(
        "--decoders",
        type=positive_int,
        metavar="N",
        help="how many processes of the cluster decode (default: as many as it has cores)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and do nothing"
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help="try again the rows that could not be embedded"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="first read again the input that is already embedded, and compare every row with its "
        "part",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="the input has got more pictures, files, or rows at the ends of its files, since the "
        "job began: embed these into parts of their own (without it, more pictures or files are "
        "embedded with a warning, and a file with more rows is refused)",
    )
    parser.add_argument(
        "--max-errors",
        type=non_negative_int,
        metavar="N",
        help="stop when more rows than this fail",
    )
    add_stopping(
        parser,
        30,
        "the part under way is finished if that is likely in time, or dropped; on a Ray cluster "
        "all parts under way are dropped",
    )
    parser.set_defaults(run=run, kept=GOES_ON)


def run(args: argparse.Namespace) -> int:
    """Embeds, and prints what was done."""
    # Arrow's own allocator never returns the memory that a thread has used for a part.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from clip_jax.embed import Columns, embed
    from clip_jax.embed.parts import ERRORS
    from clip_jax.messages import counted
    from clip_jax.progress import announce

    if not args.dry_run and not may_write(args.out, OWN):
        complain("nothing is written: give another --out")
        return FAILURE
    if args.distributed:
        distributed.join("use --shard I/N", shutdown_timeout_seconds=A_WEEK)
    if args.engine == "ray":
        import jax

        # The cluster's processes have the accelerators, of which some admit one process only.
        jax.config.update("jax_platforms", "cpu")
    tell_what_it_knows(args.model)
    announce("loading the model")
    summary = embed(
        args.source,
        args.model,
        args.out,
        what=args.what,
        preset=args.preset,
        dtype=args.dtype,
        format=args.format,
        rows_per_part=args.rows_per_part,
        batch_size=args.batch_size,
        columns=Columns(
            args.image_column, args.caption_column, args.key_column, tuple(args.columns)
        ),
        where=args.where,
        exif_transpose=args.exif_transpose,
        pictures=pictures_of(args),
        formats=args.formats,
        shard=args.shard,
        dry_run=args.dry_run,
        retry_errors=args.retry_errors,
        verify=args.verify,
        extend=args.extend,
        max_errors=args.max_errors,
        num_threads=args.threads,
        resize=args.resize,
        grace=args.grace,
        engine=args.engine,
        address=args.address,
        encoders=args.encoders,
        decoders=args.decoders,
        **load_options(args),
    )
    print(summary)
    for sentence in summary.remarks:
        complain(sentence)
    if summary.errors and not (summary.rows or summary.rows_before or args.dry_run):
        complain(
            f"no row could be embedded; {ERRORS}/ in {args.out} says why of each. Mend the cause, "
            "and start the same command again with --retry-errors"
        )
        return 1
    if summary.errors and not args.dry_run:
        lost = counted(summary.errors, "row")
        complain(f"{lost} could not be embedded; {ERRORS}/ in {args.out} says why of each")
    return 0
