"""`clip-jax classify`: scores pictures against labels."""

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.cli.arguments import (
    BEGINS_AGAIN,
    Distinct,
    add_json,
    add_model,
    add_pictures,
    label,
    load_options,
    pictures_of,
    positive_int,
    template,
)
from clip_jax.cli.output import complain, print_json, printable, tell_what_it_knows

BATCH = 32


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "classify",
        help="score pictures against labels",
        description="Score pictures against labels: the softmax over the labels of the model's "
        "scaled cosine similarities, best first. A SigLIP model gives each label a probability of "
        "its own instead, whatever the other labels are. A picture that can't be read is reported, "
        "the others are classified all the same, and the exit status is 1.",
        epilog="example: clip-jax classify a.jpg b.png --labels dog cat "
        '--template "a photo of a {}." --model ViT-B/32',
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files, or folders of them"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        metavar="TEXT",
        type=label,
        action=Distinct,
        help="what the pictures may show",
    )
    add_model(
        parser,
        "a name that `clip-jax models --all` lists, a repository of the Hugging Face Hub, a file "
        "of weights, or a folder of clip_jax, transformers or OpenCLIP",
        "ViT-B/32",
    )
    parser.add_argument(
        "--template",
        default="{}",
        type=template,
        help='a sentence around each label, such as "a photo of a {}." (default: the label as it '
        "is)",
    )
    parser.add_argument(
        "--top", type=positive_int, metavar="K", help="print the K best labels only (default: all)"
    )
    parser.add_argument(
        "--compile-cache",
        metavar="DIR",
        help="keep compiled programs in this folder for the next time; for GPUs and TPUs",
    )
    add_pictures(parser)
    add_json(parser)
    parser.set_defaults(run=run, kept=BEGINS_AGAIN)


def run(args: argparse.Namespace) -> int:
    """Classifies, and prints the scores of the pictures that could be read."""
    from clip_jax import compile_cache

    # Checked before weights are loaded or even downloaded in vain.
    found = [path for image in args.images for path in _pictures(image)]
    paths = [path for path in found if path is not None]
    if paths:
        tell_what_it_knows(args.model)
    results = []
    with compile_cache(args.compile_cache):
        for result in _results(args, paths) if paths else ():
            if not args.json:
                _print(result, first=not results)
            results.append(result)
    if args.json:
        print_json(results)
    return 0 if len(results) == len(found) else 1


def _results(args: argparse.Namespace, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    import numpy as np

    from clip_jax.errors import NotFiniteError
    from clip_jax.evaluate import ZeroShotClassifier

    model, preprocess, tokenizer = _load(args.model, load_options(args))
    preprocess = pictures_of(args).applied_to(preprocess)
    try:
        classifier = ZeroShotClassifier(
            model,
            args.labels,
            [args.template],
            # No larger than what there is to embed: a batch that isn't full is padded.
            batch_size=min(BATCH, max(len(paths), len(args.labels))),
            tokenizer=tokenizer,
        )
    except NotFiniteError as error:
        raise _damaged(args.model, f"the label {args.labels[error.rows[0]]!r}") from None
    del model  # its arrays are needed no longer
    if classifier.is_independent:
        complain(
            "each label has a probability of its own, as SigLIP was trained; they need not add up "
            "to 100%"
        )
    count = min(args.top or len(args.labels), len(args.labels))
    for batch, pixels in _batches(paths, preprocess):
        try:
            probabilities, classes = classifier.top_k(pixels, count)
        except NotFiniteError as error:
            raise _damaged(args.model, batch[error.rows[0]]) from None
        for path, shares, numbers in zip(batch, probabilities, classes, strict=True):
            if not np.isfinite(shares).all():
                raise _damaged(args.model, path)
            scores = [
                {"label": args.labels[number], "probability": float(share)}
                for number, share in zip(numbers, shares, strict=True)
            ]
            yield {"image": path, "scores": scores}


def _load(name: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    from clip_jax import DownloadError, load, load_tokenizer

    try:
        # A file of weights has no tokenizer beside it: its strings are CLIP's.
        model, preprocess = load(name, **options)
        if os.path.isfile(name):
            return model, preprocess, None
        return model, preprocess, load_tokenizer(name, preprocessing=options["preprocessing"])
    except DownloadError as error:
        raise DownloadError(
            f"{error}. A small model that knows emoji needs no network: --model emoji"
        ) from None


def _damaged(model: str, what: str) -> ValueError:
    return ValueError(
        f"{model} gives values that are not finite for {what}: its weights are damaged, get them "
        "again"
    )


def _pictures(path: str) -> Sequence[str | None]:
    """Returns the paths of a picture, or of those in a folder; None for what is reported."""
    if os.path.isdir(path):
        from clip_jax.progress import remark
        from clip_jax.sources.folder import FolderShard, others_of

        try:
            shard = FolderShard(path)
            remark(others_of(path, shard.others))
            return [os.path.join(path, name) for name in shard.names]
        except (OSError, ValueError) as error:
            complain(printable(str(error)))
            return [None]
    if os.path.exists(path):
        return [path]
    what = "download it first, and give the file" if "://" in path else "check the path"
    complain(f"{printable(path)}: no such file; {what}")
    return [None]


def _batches(paths: Sequence[str], preprocess: Any) -> Iterator[tuple[list[str], Any]]:
    """Yields paths and their pixels; reports the pictures that can't be read."""
    import numpy as np

    from clip_jax import open_image
    from clip_jax.channels import Losses
    from clip_jax.errors import is_exhausted
    from clip_jax.naming import reading

    losses = Losses()
    batch: list[str] = []
    pixels = []
    for i, path in enumerate(paths):
        try:
            image = open_image(path, preprocess=preprocess)
            with reading(path):
                pixels.append(preprocess.pixels(image))
                losses.add(preprocess.losses(image), path)
            batch.append(path)
        except (ValueError, OSError) as error:
            if is_exhausted(error):
                raise error.__cause__ or error from None
            # open_image begins its message with the path, preprocessing doesn't know it
            reason = str(error).removeprefix(f"{path}: ")
            complain(f"{printable(path)}: {reason}")
        if batch and (len(batch) == BATCH or i == len(paths) - 1):
            yield batch, np.stack(pixels)
            batch, pixels = [], []
    for sentence in losses.sentences():
        complain(sentence)


def _print(result: dict[str, Any], *, first: bool) -> None:
    if not first:
        print()
    print(printable(result["image"]))
    width = max(len(printable(score["label"])) for score in result["scores"])
    for score in result["scores"]:
        print(f"  {printable(score['label']):<{width}}  {score['probability']:7.2%}", flush=True)
