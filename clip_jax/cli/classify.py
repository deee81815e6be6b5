"""`clip-jax classify`: which of some labels fits a picture best."""

import argparse
import collections
import os
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.cli.output import complain, print_json, printable

BATCH = 32


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "classify",
        help="score pictures against labels",
        description="Score pictures against labels: the softmax over the labels of the model's "
        "scaled cosine similarities, best first. A picture that can't be read is reported, the "
        "others are classified all the same, and the exit status is 1.",
        epilog="example: clip-jax classify a.jpg b.png --labels dog cat "
        '--template "a photo of a {}." --model ViT-B/32',
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        metavar="TEXT",
        type=_label,
        action=_Distinct,
        help="what the pictures may show",
    )
    parser.add_argument(
        "--model",
        default="ViT-B/32",
        metavar="NAME_OR_PATH",
        help="a name that `clip-jax models` lists, a .pt or .safetensors file, or a folder that "
        "`clip-jax convert` wrote (default: %(default)s)",
    )
    parser.add_argument(
        "--template",
        default="{}",
        type=_template,
        help='a sentence around each label, such as "a photo of a {}." (default: the label as it '
        "is)",
    )
    parser.add_argument(
        "--top", type=_count, metavar="K", help="print the K best labels only (default: all)"
    )
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="keep compiled programs in this folder for the next time; for GPUs and TPUs",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Classifies, and prints what could be read."""
    from clip_jax import compile_cache

    # Before weights are loaded or even downloaded for nothing.
    paths = [path for path in args.images if _exists(path)]
    results = []
    with compile_cache(args.compile_cache):
        for result in _results(args, paths) if paths else ():
            if not args.json:
                _print(result, first=not results)
            results.append(result)
    if args.json:
        print_json(results)
    return 0 if len(results) == len(args.images) else 1


def _results(args: argparse.Namespace, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    import numpy as np

    from clip_jax import DownloadError, load, tokenize
    from clip_jax.nn import normalize

    try:
        model, preprocess = load(args.model)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. A small model that knows emoji needs no network: --model emoji"
        ) from None
    texts = [args.template.replace("{}", label) for label in args.labels]
    tokens = tokenize(texts, model.config.text.context_length)
    text = np.asarray(normalize(model.encode_text(tokens)), np.float64)
    scale = np.exp(float(model.logit_scale[...]))
    for batch, pixels in _batches(paths, preprocess):
        image = np.asarray(normalize(model.encode_image(pixels)), np.float64)
        for path, logits in zip(batch, scale * image @ text.T, strict=True):
            if not np.isfinite(logits).all():
                raise ValueError(
                    f"{args.model} gives values that are not finite for {path}: its weights are "
                    f"damaged, get them again"
                )
            weights = np.exp(logits - logits.max())
            scores = _scores(args.labels, weights / weights.sum())
            yield {"image": path, "scores": scores[: args.top]}


def _exists(path: str) -> bool:
    if os.path.exists(path):
        return True
    complain(f"{printable(path)}: no such file; check the path")
    return False


def _batches(paths: Sequence[str], preprocess: Any) -> Iterator[tuple[list[str], Any]]:
    import numpy as np

    from clip_jax import open_image
    from clip_jax.errors import is_exhausted

    batch: list[str] = []
    pixels = []
    for i, path in enumerate(paths):
        try:
            pixels.append(preprocess.pixels(open_image(path)))
            batch.append(path)
        except (ValueError, OSError) as error:
            if is_exhausted(error):
                raise error.__cause__ or error from None
            # open_image names the path itself, preprocessing can't
            reason = str(error).removeprefix(f"{path}: ")
            complain(f"{printable(path)}: {reason}")
        if batch and (len(batch) == BATCH or i == len(paths) - 1):
            yield batch, np.stack(pixels)
            batch, pixels = [], []


def _scores(labels: Sequence[str], probabilities: Any) -> list[dict[str, Any]]:
    order = sorted(range(len(labels)), key=lambda i: -probabilities[i])
    return [{"label": labels[i], "probability": float(probabilities[i])} for i in order]


def _print(result: dict[str, Any], *, first: bool) -> None:
    if not first:
        print()
    print(printable(result["image"]))
    width = max(len(printable(score["label"])) for score in result["scores"])
    for score in result["scores"]:
        print(f"  {printable(score['label']):<{width}}  {score['probability']:7.2%}", flush=True)


def _label(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a label must not be empty or blank")
    return _encodable(text)


def _template(text: str) -> str:
    if "{}" not in text:
        raise argparse.ArgumentTypeError(
            f"a template must have {{}} where the label goes, such as 'a photo of a {{}}.'. "
            f"Got {text!r}"
        )
    return _encodable(text)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid UTF-8") from None
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on. Got {text!r}")
    return int(text)


class _Distinct(argparse.Action):
    """Stores values that must differ."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Argparse's protocol."""
        counts = collections.Counter(values)
        if twice := sorted(value for value, count in counts.items() if count > 1):
            raise argparse.ArgumentError(self, f"given more than once: {', '.join(twice)}")
        setattr(namespace, self.dest, values)
