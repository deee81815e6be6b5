"""What the commands' arguments have in common: their types, and options that several have."""

import argparse
import collections
import os
import re
import signal
from typing import Any, get_args

from clip_jax.config import Activation
from clip_jax.image_size import MOST_PIXELS_A_SIDE, as_image_size

# What Ctrl-C leaves of a command that says nothing better itself.
GOES_ON = "what was finished is kept, and the same command goes on"
BEGINS_AGAIN = "nothing is left half-written, and the same command begins again"


def positive_int(text: str) -> int:
    """Returns a whole number from 1 on.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on. Got {text!r}")
    return int(text)


def non_negative_int(text: str) -> int:
    """Returns a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on. Got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Returns a finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0. Got {text!r}")
    return number


def file_name(text: str) -> str:
    """Returns the name of a file.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file. Got ''")
    return text


def label(text: str) -> str:
    """Returns a label.

    Raises:
        argparse.ArgumentTypeError: it is blank, not valid UTF-8, or a file.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("a label must not be empty or blank")
    if os.path.splitext(text)[1] and os.path.isfile(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a file, expected a label: give what the pictures may show, such as dog cat"
        )
    return _encodable(text)


def template(text: str) -> str:
    """Returns a sentence with {} where a label goes.

    Raises:
        argparse.ArgumentTypeError: it has no {}, or is not valid UTF-8.
    """
    if "{}" not in text:
        raise argparse.ArgumentTypeError(
            f"a template must have {{}} where the label goes, such as 'a photo of a {{}}.'. "
            f"Got {text!r}"
        )
    return _encodable(text)


def shard(text: str) -> tuple[int, int]:
    """Returns I and N of I/N: which of N shares of the work to do.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(
            f"expected I/N with I from 0 to N - 1, such as 0/4. Got {text!r}"
        )
    return int(found[1]), int(found[2])


def heads(text: str) -> int | tuple[int, int]:
    """Returns the attention heads of the vision tower, or of vision and text.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    numbers = [int(part) for part in text.split(",") if part.isdecimal() and int(part)]
    if len(numbers) != text.count(",") + 1 or len(numbers) > 2:
        raise argparse.ArgumentTypeError(
            f"expected the heads of the vision tower, such as 16, or of the vision and the text "
            f"tower, such as 16,12. Got {text!r}"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def setting(text: str) -> str:
    """Returns a KEY=VALUE.

    Raises:
        argparse.ArgumentTypeError: it is something else, or has several lines.
    """
    key, equals, value = text.partition("=")
    if not key or not equals or "\n" in value:
        raise argparse.ArgumentTypeError(
            f"expected KEY=VALUE in one line, such as run.batch_size=64. Got {text!r}"
        )
    return text


class Distinct(argparse.Action):
    """Stores a list of values, none of which may be given twice."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Checks and stores the values, as argparse's protocol has it."""
        counts = collections.Counter(values)
        if twice := sorted(value for value, count in counts.items() if count > 1):
            raise argparse.ArgumentError(self, f"given more than once: {', '.join(twice)}")
        setattr(namespace, self.dest, values)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declares `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_model(
    parser: argparse.ArgumentParser, description: str, default: str | None = None
) -> None:
    """Declares `--model`, whose description says what it may be, and what may belong to it."""
    if default:
        description += " (default: %(default)s)"
    parser.add_argument("--model", default=default, metavar="NAME_OR_PATH", help=description)
    add_bare_file(parser)
    parser.add_argument(
        "--preprocessing",
        choices=("openai", "huggingface"),
        default="openai",
        help="make pixels and ids as in the training of OpenAI's models, or as Hugging Face's "
        "transformers do for a folder of theirs (default: %(default)s)",
    )
    add_image_size(parser)


def add_bare_file(parser: argparse.ArgumentParser) -> None:
    """Declares what a bare file of weights doesn't say: `--activation` and `--num-heads`."""
    parser.add_argument(
        "--activation",
        choices=get_args(Activation),
        help="the GELU of a model that is a bare file, which doesn't say it, unless it is one of "
        "OpenAI's or a configuration lies beside it",
    )
    parser.add_argument(
        "--num-heads",
        type=heads,
        metavar="N[,N]",
        help="likewise the attention heads: the vision tower's, if the text tower's are 64 wide; "
        "or the vision tower's and the text tower's, such as 16,12",
    )


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options that belong to `--model` say, as the arguments of `load`."""
    return {
        "activation": args.activation,
        "num_heads": args.num_heads,
        "preprocessing": args.preprocessing,
        "image_size": args.image_size,
        "position_resize": args.position_resize,
        "drop_remainder": args.drop_remainder,
    }


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Declares the options that name a table's columns."""
    others = {"image": "filepath or file_name", "caption": "title or text", "key": ""}
    for column, names in others.items():
        also = f"; {names} where a table has neither image nor caption" if names else ""
        parser.add_argument(
            f"--{column}-column",
            default=column,
            metavar="NAME",
            help=f"of tables (default: %(default)s{also})",
        )


def add_stopping(parser: argparse.ArgumentParser, grace: int, what: str) -> None:
    """Declares `--grace` and `--signal`.

    Args:
        parser: the command's.
        grace: the default.
        what: what becomes of the work under way.
    """
    parser.add_argument(
        "--grace",
        type=non_negative_float,
        default=grace,
        metavar="SECONDS",
        help=f"be gone within this time of SIGTERM, as a scheduler sends it: {what} (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--signal",
        choices=[name for name in ("USR1", "USR2") if hasattr(signal, f"SIG{name}")],
        help="take this signal like SIGTERM, as with Slurm's own option --signal=USR1@60",
    )


def non_negative_float(text: str) -> float:
    """Returns a finite number from 0 on.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on. Got {text!r}")
    return number


def add_where(parser: argparse.ArgumentParser) -> None:
    """Declares `--where`."""
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        type=condition,
        metavar="CONDITION",
        help="take only rows whose columns (of .tar files: fields of their .json members) fit: "
        "'width>=256', lang=en, caption~sea, 'lang in en,de', \"caption!=''\"; of several, all "
        "must hold",
    )


def condition(text: str) -> str:
    """Returns a condition on a column.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    from clip_jax.sources.where import Where

    try:
        Where.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Declares the options of how pictures become pixels."""
    parser.add_argument(
        "--fit",
        choices=("crop", "pad", "squash"),
        help="crop a picture to its middle, show all of it with margins, or squash it (default: as "
        "the model was trained, which is to crop for CLIP)",
    )
    parser.add_argument(
        "--background",
        metavar="COLOR",
        type=color,
        help="put transparent parts and margins on this colour, such as white (default: the colour "
        "beneath shows, as in the reference, and margins are black)",
    )
    parser.add_argument(
        "--scale-16-bit",
        action="store_true",
        help="scale grey pictures of 16 bits to 8 (default: values above 255 are white, as in the "
        "reference)",
    )
    parser.add_argument(
        "--decode",
        choices=("exact", "fast"),
        default="exact",
        help="fast: decode JPEG files at a half, a quarter or an eighth of their scale, where they "
        "are that much larger than needed; embeddings differ a little (default: %(default)s)",
    )


def pictures_of(args: argparse.Namespace) -> Any:
    """Returns those options as `clip_jax.embed.PictureOptions`."""
    from clip_jax.picture_options import PictureOptions

    return PictureOptions(args.fit, args.background, args.scale_16_bit, args.decode)


def color(text: str) -> str:
    """Returns the name of a colour.

    Raises:
        argparse.ArgumentTypeError: there is none of that name.
    """
    from clip_jax.channels import color_of

    try:
        color_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def image_size(text: str) -> int | tuple[int, int]:
    """Returns the side of a square, or HEIGHTxWIDTH.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    sides = [int(side) for side in found.groups() if side] if found else [0]
    try:
        return as_image_size(tuple(sides) if len(sides) == 2 else sides[0])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a side in pixels, such as 336, or HEIGHTxWIDTH, such as 224x336, below "
            f"{MOST_PIXELS_A_SIDE:,}. Got {text!r}"
        ) from None


def add_image_size(parser: argparse.ArgumentParser) -> None:
    """Declares `--image-size`, and how positions are resized for it."""
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="SIZE",
        help="run a Vision Transformer on images of another size than its own, such as 336, or "
        "224x336 for height and width",
    )
    parser.add_argument(
        "--position-resize",
        choices=("open_clip", "huggingface"),
        help="with --image-size: whose way of resizing the positions (default: huggingface for "
        "folders of transformers, else open_clip)",
    )
    parser.add_argument(
        "--drop-remainder",
        action="store_true",
        help="with --image-size: allow sizes that are no multiple of the patches; what is left at "
        "the right and at the bottom is not seen",
    )


def add_batch_size(parser: argparse.ArgumentParser, description: str) -> None:
    """Declares `--batch-size`; the description says of what."""
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help=description)


def add_distributed(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declares `--distributed`; the purpose says what the hosts do together."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=f"{purpose} with the same command on the other hosts of a pod or cluster",
    )


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid UTF-8") from None
    return text
