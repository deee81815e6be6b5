"""An embedding job, which can be killed at any moment and resumed."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax

from clip_jax.config import Activation, NumHeads
from clip_jax.embed.chunks import Worker
from clip_jax.embed.compare import Comparison
from clip_jax.embed.counts import Counts, Summary
from clip_jax.embed.device_resize import Resizing
from clip_jax.embed.engines.local import LocalEngine
from clip_jax.embed.engines.work import Engine, Work
from clip_jax.embed.options import (
    EngineName,
    as_int,
    check_counts,
    check_engine,
    check_errors,
    check_options,
    check_some,
    require_pyarrow,
)
from clip_jax.embed.plan import Plan
from clip_jax.embed.setup import PRESETS as PRESETS
from clip_jax.embed.setup import TOWERS as TOWERS
from clip_jax.embed.setup import VERSION as VERSION
from clip_jax.embed.setup import Job, Preset, What, prepare
from clip_jax.image_size import ImageSize
from clip_jax.nn import CLIP
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import known_formats
from clip_jax.progress import Progress, announcing
from clip_jax.sources import Columns
from clip_jax.sources.columns import as_columns
from clip_jax.storage import storage
from clip_jax.weights.opened import LoadOptions
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing


def embed(
    source: str | os.PathLike[str],
    model: CLIP | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    what: What | None = None,
    preset: Preset = "parity",
    dtype: Literal["float32", "float16"] = "float32",
    format: Literal["parquet", "npy"] = "parquet",
    rows_per_part: int = 8192,
    batch_size: int | None = None,
    columns: Columns | None = None,
    where: str | Sequence[str] | None = None,
    exif_transpose: bool = False,
    pictures: PictureOptions | None = None,
    formats: Sequence[str] | None = None,
    shard: tuple[int, int] | None = None,
    dry_run: bool = False,
    retry_errors: bool = False,
    verify: bool = False,
    extend: bool = False,
    max_errors: int | None = None,
    num_threads: int | None = None,
    read_ahead: int = 256 << 20,
    resize: Resizing = "host",
    progress: bool = True,
    grace: float = 30.0,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    preprocessing: Preprocessing = "openai",
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
    engine: EngineName = "local",
    address: str | None = None,
    encoders: int | None = None,
    decoders: int | None = None,
) -> Summary:
    """Embeds pictures or texts, or resumes an earlier call that was stopped.

    The parts are the same to the bit whenever the job was stopped and however many processes share
    the work, given the same kind and number of devices in each process. Embeddings have L2 norm 1.
    A row that can't be embedded becomes a row of `errors/`. Texts that are too long for the model
    are truncated.

    Args:
        source: a folder of pictures, subfolders included, where captions may lie beside them, as in
            a.jpg and a.txt; WebDataset's tar files; or tables: .txt, .csv, .tsv, .jsonl, .parquet.
            A pattern with `*` and braces may name several files. A folder that img2dataset has
            written, or one of Parquet files, such as hf://datasets/owner/name. Any address that
            fsspec knows.
        model: a model, or what `clip_jax.load` takes.
        out: the folder of the output; any address that fsspec knows.
        what: what to embed; by default pictures if the input has some, else texts.
        preset: how a model given by name or path computes: "parity", float32 as PyTorch, or "fast",
            bfloat16.
        dtype: the dtype of the stored embeddings.
        format: "parquet", or "npy" for the layout of clip-retrieval.
        rows_per_part: rows of a chunk, the unit of work that a kill can lose. No part spans files.
        batch_size: rows of a batch over the devices of this process, as in `Encoder`.
        columns: the roles of a table's columns, and those to pass through.
        where: the conditions that a row must fit to be taken, all of them: a column, one of =, !=,
            <, <=, >, >=, in, and a value, such as "width>=256" or "lang in en,de". Of tar files,
            the columns are the fields of their .json members. A missing value fits no condition.
        exif_transpose: whether to rotate pictures by their EXIF data; the reference doesn't.
        pictures: whether pictures are cropped, padded or squashed, and the like; by default as for
            the model.
        formats: the picture formats to accept, by Pillow's names, whatever the files' names;
            `clip_jax.preprocess.FORMATS` by default.
        shard: (i, n), to be worker i of n, counted from 0. By default one worker, or under
            `jax.distributed` one per process.
        dry_run: whether only to report what would be done.
        retry_errors: whether to try again the rows that earlier runs could not embed.
        verify: whether to read all embedded rows of the input again, and compare each with its
            part, before going on.
        extend: whether it is meant that the input has got more pictures, files, or rows at the ends
            of its files, since the job began: they are embedded into parts of their own, and the
            rest stays as it is. Without it more pictures and files are embedded with a warning,
            and a file with more rows is refused.
        max_errors: how many rows of this worker may fail; by default any number.
        num_threads: threads that read and decode; by default one per core.
        read_ahead: the most bytes of rows to read ahead of the device.
        resize: who resizes pictures of a size that many have, such as frames of videos and
            thumbnails: the "host", or the "device" that embeds, to the same bits, for an
            accelerator whose host can't keep up. Not with Ray, whose decoders resize.
        progress: whether to show a progress bar on standard error, or lines of JSON if that is not
            a terminal.
        grace: on the command line, the seconds after SIGTERM in which the process ends. The part
            under way is finished if that is likely to be in time, else dropped.
        activation: of a model that is a bare file, as for `clip_jax.load`.
        num_heads: of a model that is a bare file, as for `clip_jax.load`.
        preprocessing: whose pixels and ids, as for `clip_jax.load`. Tokens that a folder has added
            to CLIP's are known in any case, if the model is given by name or path.
        image_size: another size of the images, as for `clip_jax.load`; a search in the output loads
            the model alike.
        position_resize: how positions are resized for it, likewise.
        drop_remainder: whether it may be no multiple of the patches' size, likewise.
        engine: "local", this process; or "ray", a cluster, on which decoding and embedding go to
            whatever is free. Either goes on where the other was stopped.
        address: of the Ray cluster, "auto" or HOST:PORT; by default one is started on this machine.
            `batch_size` and `read_ahead` are of each encoder then, and `num_threads` of a decoder.
        encoders: how many processes embed on the cluster; by default one per accelerator, or per
            node if it has none.
        decoders: how many decode there at a time; by default as many as the CPUs can take.

    Returns:
        What was done, and how long each stage took.

    Raises:
        ValueError: an option is out of range; the input is empty or lacks a column; `out` holds
            the output of another job, or of other rows; more rows fail than `max_errors`.
        OSError: the output can't be written; a store can't be reached; another process is doing
            the same work; file descriptors have run out. Finished parts are kept.
        MemoryError: memory has run out. Finished parts are kept.
        KeyboardInterrupt: Ctrl-C; its note says what is kept.
        ModuleNotFoundError: the extra `embed`, `remote` for addresses, or `ray` is not installed.
    """
    rows_per_part = as_int(rows_per_part)
    check_options(what, preset, dtype, format, rows_per_part, max_errors, shard)
    check_engine(engine, address, encoders, decoders, resize)
    check_counts(batch_size=batch_size, num_threads=num_threads)
    picture_options = PictureOptions.of(pictures)
    require_pyarrow()
    options = LoadOptions(
        activation, num_heads, preprocessing, image_size, position_resize, drop_remainder
    )
    runs: Engine = LocalEngine(batch_size, num_threads, read_ahead, resize)
    if engine == "ray" and not dry_run:
        from clip_jax.embed.engines.ray_engine import RayEngine

        runs = RayEngine(
            *(address, encoders, decoders, batch_size, num_threads, read_ahead),
            *(model, preset, options),
        )
    with runs.ready():
        worker = Worker(*(shard or (jax.process_index(), jax.process_count())))
        job = prepare(
            source,
            model,
            out,
            what=what,
            preset=preset,
            dtype=dtype,
            format=format,
            rows_per_part=rows_per_part,
            columns=as_columns(columns),
            exif_transpose=exif_transpose,
            pictures=picture_options,
            formats=formats,
            where=where,
            extend=extend,
            options=options,
        )
        if job.grown.added and not extend:
            warnings.warn(
                f"{job.source} has {job.grown.added} than when {job.out} was begun: what is new "
                "goes into parts of its own",
                stacklevel=2,
            )
        return _run(
            job,
            runs,
            worker,
            rows_per_part=rows_per_part,
            formats=known_formats(formats),
            dry_run=dry_run,
            retry_errors=retry_errors,
            verify=verify,
            max_errors=max_errors,
            progress=progress,
            grace=grace,
        )


def _run(
    job: Job,
    engine: Engine,
    worker: Worker,
    *,
    rows_per_part: int,
    formats: Sequence[str],
    dry_run: bool,
    retry_errors: bool,
    verify: bool,
    max_errors: int | None,
    progress: bool,
    grace: float,
) -> Summary:
    """Plans what is left of a job, and has an engine do it; the arguments are those of `embed`."""
    is_ours = job.claim(dry=True)
    if is_ours:
        job.take_noted_types()
    else:
        job.check_unclaimed()
    counts = Counts()
    counts.tally = job.rows.tally
    if job.rows.remark:
        counts.remarks.append(job.rows.remark)

    def planned() -> tuple[Plan, Comparison]:
        plan = Plan(
            job.rows,
            job.parts,
            worker,
            rows_per_part=rows_per_part,
            retry_errors=retry_errors,
            counts=counts,
            entirely=verify,
        )
        comparison = Comparison(plan, job.layout, job.parts, show=progress)
        comparison.check(verify=verify, note=not dry_run)
        counts.verified = comparison.rows if verify else 0
        return plan, comparison

    if dry_run:
        plan, _ = planned()
        to_do = [len(pending.rows) for pending, _ in plan.pending()]
        check_some(job.source, plan, job.rows.where)
        return counts.summary(sum(to_do), len(to_do))

    with (
        Progress(progress) as bar,
        announcing(progress),
        _alone(job.out, worker) as alone,
        _kept(counts),
    ):
        if is_ours:
            alone()
        plan, comparison = planned()
        plan.clean()

        def begin() -> None:
            job.claim(dry=False)
            job.take_noted_types()
            comparison.layout = job.layout
            alone()

        def show() -> None:
            rows, errors, waiting = counts.rows, counts.errors, counts.waiting
            bar.update(rows, errors=errors, total=plan.total, waiting=waiting)

        def after_row() -> None:
            check_errors(counts, max_errors)
            show()

        has_begun = engine.run(Work(job, plan, counts, begin, after_row, formats, grace))
        comparison.check_changed()
        check_some(job.source, plan, job.rows.where)
        if not has_begun:  # nothing to do, but job.json may be missing
            job.claim(dry=False)
        show()
        check_errors(counts, max_errors)  # of earlier runs, where there was nothing to do
        return counts.summary()


@contextlib.contextmanager
def _alone(out: str, worker: Worker) -> Iterator[Callable[[], None]]:
    """Yields a function that takes this worker's lock, held until the block ends.

    The function waits for a process that is about to end.
    """
    where = storage(out)
    path = f"{out}/.share-{worker.index}-of-{worker.count}.lock"
    what = out if worker.count == 1 else f"share {worker.index}/{worker.count} of {out}"
    with contextlib.ExitStack() as held:
        is_held = False

        def alone() -> None:
            nonlocal is_held
            if not is_held:
                held.enter_context(where.locked(path, what))
                is_held = True

        yield alone


@contextlib.contextmanager
def _kept(counts: Counts) -> Iterator[None]:
    """Adds a note about the finished parts to a signal's exception."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(counts.kept())
        raise
