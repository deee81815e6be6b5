"""`clip-jax eval`: zero-shot, retrieval and the linear probe on data of one's own."""

import argparse
import os
from typing import Any

from clip_jax.cli.figures import document_of, show, status_of
from clip_jax.cli.output import print_json, print_table, progress

DATA = (
    "a folder with a folder of pictures for each class; WebDataset's .tar files, whose members "
    "that end in .cls are the labels; a .csv, .jsonl or .parquet table; or what clip-jax embed "
    "has left, with a column of labels"
)


def add(commands: Any) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "eval",
        help="evaluate a model on labelled or captioned pictures",
        description="Evaluate a model as CLIP was: by the names of the classes, by finding "
        "captions and pictures, or by a linear classifier of its features.",
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
        description="Classify pictures by the names of their classes alone, and count how often "
        "that is right. Pictures that can't be read, and rows that an embedding job lacks, are "
        "reported and left out; the exit status is then 1.",
        epilog="example: clip-jax eval zeroshot pictures --templates templates.txt --report out",
    )
    parser.add_argument("data", metavar="DATA", help=DATA)
    _add_model(parser)
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="a name a line, or label, tab, name (default: the labels are the names)",
    )
    parser.add_argument(
        "--templates",
        metavar="FILE",
        help="a sentence a line, with {} where the name goes (default: a photo of a {}.)",
    )
    _add_common(parser)
    _add_report(parser)
    parser.set_defaults(run=run_zeroshot)


def _add_retrieval(kinds: Any) -> None:
    parser = kinds.add_parser(
        "retrieval",
        help="find captions by pictures and pictures by captions",
        description="Count how often a picture's own caption is among the 1, 5 and 10 nearest, "
        "and the other way round. A picture may have several captions.",
        epilog="example: clip-jax eval retrieval 'coco-{00..04}.tar' --model ViT-B/32",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="WebDataset's .tar files, a folder with a table of captions or such a table, as for "
        "training; or what clip-jax embed --what both has left",
    )
    _add_model(parser)
    parser.add_argument("--batch-size", type=_positive, metavar="N", help=_BATCH)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_retrieval)


def _add_probe(kinds: Any) -> None:
    parser = kinds.add_parser(
        "probe",
        help="train a linear classifier of the features",
        description="Fit logistic regression on the features of a model, with the paper's search "
        "for the strength of its regularisation, and count how often it is right on other rows.",
        epilog="example: clip-jax eval probe train --test test --features before",
    )
    parser.add_argument("data", metavar="DATA", help=f"what to fit: {DATA}")
    parser.add_argument(
        "--test",
        metavar="DATA",
        help="what to test on (default: every fifth row of each class, which is then not fitted)",
    )
    _add_model(parser)
    parser.add_argument(
        "-C",
        type=_above_zero,
        metavar="C",
        help="the inverse strength of the regularisation (default: searched for from 1e-6 to 1e6 "
        "on every fifth row of each class, then fitted on all)",
    )
    parser.add_argument(
        "--features",
        choices=("before", "after"),
        default="after",
        help="before a ViT's projection, as in the paper, or after it (default: %(default)s)",
    )
    parser.add_argument(
        "--max-iter", type=_positive, default=1000, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--tol", type=_above_zero, default=1e-4, help="(default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="of the fit"
    )
    _add_common(parser)
    _add_report(parser)
    parser.set_defaults(run=run_probe)


_BATCH = "pictures that are computed at one time"


def _add_model(parser: Any) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        help="as for classify (default: that of the embedding job, else ViT-B/32)",
    )


def _add_common(parser: Any) -> None:
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="of shards, tables and embeddings (default: cls in shards, else label)",
    )
    parser.add_argument("--batch-size", type=_positive, metavar="N", help=_BATCH)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_report(parser: Any) -> None:
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write report.html: the figures of each class, the confusion matrix, the most "
        "confident mistakes; and these as files",
    )


def run_zeroshot(args: argparse.Namespace) -> int:
    """Evaluates, prints the figures, and writes the report."""
    from clip_jax.evaluate import ZeroShotClassifier
    from clip_jax.evaluate.classes import name_classes, read_lines
    from clip_jax.evaluate.data import class_folders
    from clip_jax.evaluate.scores import blocks, score_blocks
    from clip_jax.evaluate.zeroshot import TEMPLATES, check_prompts

    # Before weights are loaded and pictures read for nothing.
    lines = read_lines(args.classes) if args.classes else None
    templates = read_lines(args.templates) if args.templates else TEMPLATES
    check_prompts(name_classes(class_folders(args.data), lines)[0] or ["a"], templates)
    _prepare_report(args)
    model = _model(args, args.data)
    images = _images(args, args.data, model)
    names, targets = name_classes(images.labels, lines)
    progress("embedding the prompts")
    classifier = ZeroShotClassifier(model, names, templates, batch_size=args.batch_size)
    slices = blocks(len(targets), len(names))
    logits = (classifier.logits(images.embeddings[rows]) for rows in slices)
    scores = score_blocks(logits, targets)
    document = document_of(scores, names) | {
        "templates": list(templates),
        "unreadable": len(images.problems) + images.missing,
        "files_without_parts": images.unknown,
    }
    show(document, args.json)
    if args.report:
        from clip_jax.evaluate.report import write_report

        rows = targets, images.keys, images.paths
        write_report(args.report, f"Zero-shot: {args.data}", scores, names, *rows)
    return status_of(images.problems, images.missing or images.unknown)


def run_retrieval(args: argparse.Namespace) -> int:
    """Evaluates, and prints the recalls."""
    from clip_jax.embed.identity import check_model
    from clip_jax.evaluate import recall_at_k
    from clip_jax.evaluate.captions import embed_captioned, read_captioned
    from clip_jax.evaluate.data import embedding_job

    job = embedding_job(args.data)
    if job is not None:
        if args.model:
            check_model(args.data, job, _model(args, args.data))
        captioned = read_captioned(args.data)
    else:
        model = _model(args, args.data)
        captioned = embed_captioned(args.data, model, batch_size=args.batch_size)
    recalls = recall_at_k(captioned.images, captioned.texts, captioned.pairs)
    document = {
        "images": len(captioned.images),
        "texts": len(captioned.texts),
        "unreadable": len(captioned.problems) + captioned.missing,
        "files_without_parts": captioned.unknown,
        **{way: {str(k): share for k, share in ks.items()} for way, ks in recalls.items()},
    }
    if args.json:
        print_json(document)
    else:
        print(f"{document['images']} images, {document['texts']} texts")
        rows = [
            (way.replace("_", " "), *(f"{share:.2%}" for share in ks.values()))
            for way, ks in recalls.items()
        ]
        print_table(("recall", *(f"at {k}" for k in recalls["image_to_text"])), rows)
    return status_of(captioned.problems, captioned.missing or captioned.unknown)


def run_probe(args: argparse.Namespace) -> int:
    """Fits, evaluates, prints the figures, and writes the report."""
    import numpy as np

    from clip_jax.embed.identity import check_model
    from clip_jax.evaluate import LinearProbe, sweep
    from clip_jax.evaluate.c_sweep import check_known
    from clip_jax.evaluate.classes import hold_out
    from clip_jax.evaluate.data import class_folders, embedding_job
    from clip_jax.evaluate.scores import blocks, score_blocks

    sources = [args.data, *([args.test] if args.test else [])]
    for source in sources:
        class_folders(source)  # raises what is wrong before a model is downloaded for nothing
    _prepare_report(args)
    jobs = [embedding_job(source) for source in sources]
    if any(job and args.features == "before" for job in jobs):
        raise ValueError("embeddings are features after the projection: give the pictures instead")
    model = None
    if args.model or not all(jobs):  # embeddings alone need no model
        model = _model(args, args.data)
        for source, job in zip(sources, jobs, strict=True):
            if job:
                check_model(source, job, model)
    elif len({job["identity"]["model"] for job in jobs if job}) > 1:
        raise ValueError(f"{args.data} and {args.test} were embedded with different models")
    train, *other = (_images(args, source, model) for source in sources)
    if other:
        test = other[0]
        fitted, tested = np.arange(len(train.labels)), np.arange(len(test.labels))
    else:
        test = train
        fitted, tested = hold_out(train.labels, "testing; give --test instead")
    labels, test_labels = np.array(train.labels)[fitted], np.array(test.labels)[tested]
    check_known(labels, test_labels)
    features = train.embeddings[fitted]

    options: Any = {"max_iter": args.max_iter, "tol": args.tol, "dtype": args.dtype}
    options["mesh"] = _mesh()
    found, C = None, args.C
    if C is None:
        progress("searching for C")
        rest, held = hold_out(labels, "choosing C; give -C instead")
        found = sweep(features[rest], labels[rest], features[held], labels[held], **options)
        C = found.best.C
    progress("fitting")
    probe = LinearProbe(C, **options).fit(features, labels)
    targets = np.searchsorted(probe.classes_, test_labels)
    names = probe.classes_.tolist()

    def decide(rows: slice) -> np.ndarray:
        logits = probe.decision_function(test.embeddings[tested[rows]])
        return np.stack([np.zeros_like(logits), logits], 1) if logits.ndim == 1 else logits

    scores = score_blocks(map(decide, blocks(len(tested), len(names))), targets)
    problems = [problem for images in (train, *other) for problem in images.problems]
    missing, unknown = (
        sum(getattr(images, name) for images in (train, *other)) for name in ("missing", "unknown")
    )
    document = document_of(scores, names) | {
        "fitted": len(fitted),
        "C": C,
        "sweep": [
            {"C": trial.C, "accuracy": trial.accuracy, "mean_per_class": trial.mean_per_class}
            for trial in (found.trials if found else ())
        ],
        "unreadable": len(problems) + missing,
        "files_without_parts": unknown,
    }
    show(document, args.json)
    if args.report:
        from clip_jax.evaluate.report import write_report

        keys, paths = ([column[row] for row in tested] for column in (test.keys, test.paths))
        title = f"Linear probe: {args.data}"
        write_report(args.report, title, scores, names, targets, keys, paths, found)
    return status_of(problems, missing or unknown)


def _prepare_report(args: argparse.Namespace) -> None:
    """Says what is in the report's way before hours of work are done."""
    if args.report:
        from clip_jax.evaluate.report import prepare

        prepare(args.report)


def _model(args: argparse.Namespace, source: str) -> Any:
    """The model asked for, else that of the embedding job."""
    from clip_jax import available_models, load
    from clip_jax.embed.identity import check_model
    from clip_jax.evaluate.data import embedding_job
    from clip_jax.sources.patterns import expand
    from clip_jax.storage import storage

    job = embedding_job(source)
    if job is None and not storage(source).is_folder(source):
        expand(source)  # raises where there is none, before a model is downloaded for nothing
    name = args.model or (job["model"] if job else "ViT-B/32")
    if name is None:
        raise ValueError(f"{source} doesn't know its model by name or path: give --model")
    if not args.model and job and name not in available_models() and not os.path.exists(name):
        raise ValueError(f"the model of {source}, {name}, is not there any more: give --model")
    progress("loading the model")
    model = load(name)[0]
    if job:
        check_model(source, job, model)
    return model


def _images(args: argparse.Namespace, source: str, model: Any) -> Any:
    from clip_jax.evaluate.data import embed_images, embedding_job, read_images

    if embedding_job(source):
        return read_images(source, args.label_column or "label")
    progress("embedding the pictures")
    return embed_images(
        source,
        model,
        label_column=args.label_column,
        features=getattr(args, "features", "after"),
        batch_size=args.batch_size,
    )


def _mesh() -> Any:
    """All devices of this process; None where there is one."""
    import jax
    import numpy as np

    devices = jax.local_devices()
    return jax.sharding.Mesh(np.array(devices), ("rows",)) if len(devices) > 1 else None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on. Got {text!r}")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0. Got {text!r}")
    return number
