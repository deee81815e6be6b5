"""The job of `clip-jax eval probe`: a linear probe on the features of pictures."""

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clip_jax.config import Activation, NumHeads
from clip_jax.embed import check_model
from clip_jax.evaluate.c_sweep import Sweep, check_known, sweep
from clip_jax.evaluate.classes import check_classes, hold_out
from clip_jax.evaluate.data import Features, class_folders
from clip_jax.evaluate.inputs import (
    Model,
    embedding_job,
    find_images,
    find_model,
    name_of,
)
from clip_jax.evaluate.labels import only_labels
from clip_jax.evaluate.linear_probe import LinearProbe, check_parameters, class_logits
from clip_jax.evaluate.pictures import same_pictures
from clip_jax.evaluate.provenance import provenance_of
from clip_jax.evaluate.results import LeftOut, ProbeResult
from clip_jax.evaluate.scores import blocks, score_blocks
from clip_jax.image_size import ImageSize
from clip_jax.picture_options import PictureOptions
from clip_jax.progress import announce
from clip_jax.sources import Columns
from clip_jax.weights.opened import LoadOptions, Opened
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing


def probe(
    source: str | os.PathLike[str],
    model: Model | None = None,
    *,
    test: str | os.PathLike[str] | None = None,
    C: float | None = None,
    features: Features = "after",
    max_iter: int = 1000,
    tol: float = 1e-4,
    dtype: Literal["float32", "float64"] = "float32",
    label_column: str | None = None,
    image_column: str = Columns.image,
    where: str | Sequence[str] | None = None,
    pictures: PictureOptions | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing = "openai",
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> ProbeResult:
    """Fits a linear classifier of a model's features and tests it (Radford et al. 2021, A.3).

    Without `test`, every fifth row of each class is kept for testing. Without `C`, it is searched
    for on every fifth of the remaining rows, and the classifier is then fitted to all of these. The
    rows are split over the devices of this process.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for name in ("red", "blue"):
        ...     (folder / name).mkdir()
        ...     for i in range(5):
        ...         picture = Image.new("RGB", (64 + i, 64), name)
        ...         picture.save(folder / name / f"{i}.png")
        >>> result = probe(folder, "emoji", C=1.0, progress=False)
        >>> result.num_fitted, result.scores.count, result.scores.top1
        (8, 2, 1.0)

    Args:
        source: the rows to fit to, as for `zeroshot`.
        model: as for `zeroshot`; embeddings need none.
        test: the rows to test on, as for `zeroshot`.
        C: the inverse strength of the regularisation.
        features: "after" the projection into the embedding space, or "before" it, as in the paper;
            the latter of pictures and vision transformers only.
        max_iter: as for `LinearProbe`.
        tol: as for `LinearProbe`.
        dtype: as for `LinearProbe`.
        label_column: as for `zeroshot`.
        image_column: as for `zeroshot`.
        where: as for `zeroshot`, of both sources.
        pictures: as for `zeroshot`.
        batch_size: as for `clip_jax.Encoder`.
        progress: whether to show progress on standard error.
        activation: of a model that is a bare file, as for `clip_jax.load`.
        num_heads: likewise.
        preprocessing: whose pixels and ids, as for `clip_jax.load`.
        image_size: another size of the images, as for `clip_jax.load`.
        position_resize: how positions are resized for it, likewise.
        drop_remainder: whether it may be no multiple of the patches' size, likewise.

    Returns:
        The figures on the test rows, in `result.scores`, and the fitted classifier.

    Raises:
        ValueError: as `zeroshot` and `LinearProbe.fit`; a class has fewer than five rows where rows
            have to be held out; a class of the test rows has no rows to fit to; or the two sources
            are embeddings of different models, or of pictures that became pixels differently.
        OSError: a source can't be read.

    Warns:
        UserWarning: an embedding job is not finished; or both sources are the same.
        ConvergenceWarning: as `LinearProbe.fit`.
    """
    check_parameters(1.0 if C is None else C, max_iter, tol, dtype)
    sources = [os.fspath(each) for each in (source, test) if each is not None]
    # What can be wrong is found before a model is loaded and pictures are read in vain.
    if len({os.path.realpath(each) for each in sources}) < len(sources):
        warnings.warn(
            f"{sources[0]} is fitted and tested, so that the accuracy says how well the probe "
            "knows these pictures by heart, and nothing of others",
            stacklevel=3,
        )
    folders = [class_folders(each)[0] for each in sources]
    check_classes(sources[0], folders[0], None, are_prompts=False)
    options = LoadOptions(
        activation, num_heads, preprocessing, image_size, position_resize, drop_remainder
    )
    pictures = same_pictures(sources, [embedding_job(each) for each in sources], pictures)
    found = _model_of_all(sources, model, features, progress, options)
    name = name_of(embedding_job(_leading(sources)), model)
    provenance = provenance_of(
        sources[-1], embedding_job(sources[-1]), name, found and found.model, pictures
    )
    train, *other = (
        find_images(
            each,
            found,
            label_column=label_column,
            image_column=image_column,
            where=where,
            pictures=pictures,
            features=features,
            batch_size=batch_size,
            progress=progress,
        )
        for each in sources
    )
    tested = other[0] if other else train
    train_labels, tested_labels = (only_labels(each.keys, each.labels) for each in (train, tested))
    if other:
        fit_rows, test_rows = np.arange(len(train_labels)), np.arange(len(tested_labels))
    else:
        fit_rows, test_rows = hold_out(train_labels, "testing; give --test instead")
    labels, test_labels = np.array(train_labels)[fit_rows], np.array(tested_labels)[test_rows]
    check_known(labels, test_labels)
    settings: Any = {"max_iter": max_iter, "tol": tol, "dtype": dtype, "mesh": _local_mesh()}
    fitted, search = _fit(train.embeddings[fit_rows], labels, C, settings, progress)
    names = fitted.classes_.tolist()
    targets = np.searchsorted(fitted.classes_, test_labels)
    slices = blocks(len(targets), len(names))
    logits = (class_logits(fitted, tested.embeddings[test_rows[rows]]) for rows in slices)
    return ProbeResult(
        scores=score_blocks(logits, targets),
        class_names=names,
        targets=targets,
        keys=[tested.keys[row] for row in test_rows],
        paths=[tested.paths[row] for row in test_rows],
        left_out=sum((images.left_out for images in (train, *other)), LeftOut()),
        probe=fitted,
        num_fitted=len(fit_rows),
        sweep=search,
        provenance=provenance,
    )


def _model_of_all(
    sources: Sequence[str],
    model: Model | None,
    features: Features,
    progress: bool,
    options: LoadOptions,
) -> Opened | None:
    """Returns the model of all sources; None if they are embeddings of one model, not loaded.

    Raises:
        ValueError: they don't have one model, or lack the features.
    """
    jobs = [embedding_job(each) for each in sources]
    if features == "before" and any(jobs):
        raise ValueError("embeddings are features after the projection: give the pictures instead")
    if model is None and all(jobs):
        if len({job["identity"]["model"] for job in jobs if job}) > 1:
            raise ValueError(f"{' and '.join(sources)} were embedded with different models")
        return None
    found = find_model(_leading(sources), model, progress, options)
    for each, job in zip(sources, jobs, strict=True):
        if job:
            check_model(each, job, found.model)
    return found


def _leading(sources: Sequence[str]) -> str:
    """Returns the source that says which model it is, and whose pixels: an embedded one."""
    return next((each for each in sources if embedding_job(each)), sources[0])


def _fit(
    features: Float[np.ndarray, "n d"],
    labels: np.ndarray,
    C: float | None,
    options: dict[str, Any],
    progress: bool,
) -> tuple[LinearProbe, Sweep | None]:
    """Fits with that C, or with the one that does best on every fifth row of each class."""
    search = None
    if C is None:
        announce("searching for C", progress)
        rest, held = hold_out(labels, "choosing C; give -C instead")
        search = sweep(features[rest], labels[rest], features[held], labels[held], **options)
        C = search.best.C
    announce("fitting", progress)
    return LinearProbe(C, **options).fit(features, labels), search


def _local_mesh() -> Mesh | None:
    """Returns a mesh of all devices of this process; None if there is only one."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("rows",)) if len(devices) > 1 else None
