"""`clip-jax train`: contrastive training from a TOML file."""

import argparse
import logging
import sys
import threading
from typing import Any

from clip_jax.cli import distributed
from clip_jax.cli.arguments import GOES_ON, add_distributed, add_stopping, setting
from clip_jax.cli.asking import may_write
from clip_jax.cli.output import complain

# Files that show that a folder is a run's.
OWN = ("run.json", "run.lock", "checkpoints")


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a model",
        description="Train or fine-tune a model on pairs of pictures and captions. Stopped at any "
        "moment and started again with the same command, it goes on from its last checkpoint.",
        epilog="example: clip-jax train emoji.toml --set run.batch_size=128 --set out=runs/small",
    )
    parser.add_argument(
        "config", metavar="CONFIG", help="a TOML file; docs/guides/train.md explains one"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        type=setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a value of the file, such as optimizer.learning_rate=1e-4",
    )
    parser.add_argument(
        "--continue",
        dest="more_steps",
        action="store_true",
        help="give a run more steps than it had, with --set optimizer.total_steps=N (without this, "
        "one that has finished goes on with a warning, and one that hasn't is refused)",
    )
    add_distributed(parser, "train together")
    add_stopping(parser, 600, "the step under way is finished and saved")
    parser.set_defaults(run=run, kept=GOES_ON)


def run(args: argparse.Namespace) -> int:
    """Trains, and prints the path of the model."""
    from clip_jax.progress import announce
    from clip_jax.train.config import read_config
    from clip_jax.train.run import train

    _quieten_threads()
    config = read_config(args.config, args.overrides)
    if args.distributed:
        # So that SIGTERM stops all processes at the same step.
        distributed.join("leave it out to train on this host alone", agrees_on_sigterm=True)
    if not may_write(config.out, OWN):
        complain("nothing is written: give another `out`, as with --set out=DIR")
        return 1
    announce(f"training in {config.out}")
    print(train(config, more_steps=args.more_steps, grace=args.grace))
    return 0


def _quieten_threads() -> None:
    """Keeps Orbax's threads from printing tracebacks of errors that the command reports itself.

    The threads may print until the process ends.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    before = sys.unraisablehook

    def show(unraisable: Any) -> None:
        # TensorStore's threads name no object when an answer comes that nobody waits for.
        if unraisable.object is not None or threading.current_thread() is threading.main_thread():
            before(unraisable)

    sys.unraisablehook = show
