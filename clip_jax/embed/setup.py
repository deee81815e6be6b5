"""What an embedding job is: its input, model and output, and what tells it from other jobs."""

import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from clip_jax.embed.counts import Counts
from clip_jax.embed.device_resize import MOST_AREA, DeviceResizer
from clip_jax.embed.growth import Changed, Grown, grown
from clip_jax.embed.identity import JOB, SHOWN, another_job, claim, fingerprint, read_job
from clip_jax.embed.part_builder import Layout
from clip_jax.embed.parts import Expected, NpyParts, Parts
from clip_jax.embed.results import parts_of
from clip_jax.embed.tables import check_unclaimed
from clip_jax.loading import CpuGate, Loader
from clip_jax.messages import some
from clip_jax.nn import CLIP, model_digest
from clip_jax.picture_options import PictureOptions
from clip_jax.preprocess import Preprocess, suffixes_of
from clip_jax.sources import Columns, Input, open_input
from clip_jax.storage import absolute, folder, plain
from clip_jax.weights import load
from clip_jax.weights.opened import Configured, LoadOptions, Opened, open_model

What = Literal["images", "texts", "both"]
Preset = Literal["parity", "fast"]

# The tower that computes each column of embeddings.
TOWERS = {
    "images": {"embedding": "image"},
    "texts": {"embedding": "text"},
    "both": {"embedding": "image", "text_embedding": "text"},
}
# Arguments of `clip_jax.load`.
PRESETS: dict[Preset, dict[str, Any]] = {
    "parity": {},
    "fast": {"dtype": "bfloat16", "precision": "default"},
}
# The version of the output format; part of a job's identity.
VERSION = 1


@dataclasses.dataclass
class Job:
    """A job, the same for all of its workers and runs.

    Attributes:
        source: the input's address.
        out: the absolute address of the output folder.
        opened: the model, with what makes its inputs.
        rows: the input.
        layout: the columns of a part.
        identity: what may not differ between the runs of one job.
        claimed: what `job.json` says besides.
        parts: the output's parts.
        exif_transpose: whether to rotate pictures by their EXIF data.
        grown: what the input has got since the job began.
        pictures: the options of the preprocessing.
    """

    source: str
    out: str
    opened: Opened
    rows: Input
    layout: Layout
    identity: Mapping[str, Any]
    claimed: Mapping[str, Any]
    parts: Parts
    exif_transpose: bool
    grown: Grown
    pictures: PictureOptions = PictureOptions()

    @property
    def model(self) -> CLIP:
        """The model."""
        return self.opened.model

    def claim(self, *, dry: bool) -> bool:
        """Returns whether the output is this job's; unless `dry`, makes it this job's.

        Raises:
            ValueError: it holds the output of another job.
        """
        if not dry:
            claim(self.out, self.identity, self.claimed, dry)  # else what follows may be another's
            self.grown.write_listings(self.out, self.identity["input"])
        return claim(self.out, self.identity, self.claimed, dry, self.grown.extensions)

    def check_unclaimed(self) -> None:
        """Checks that an output without `job.json` holds no parts of another job.

        Raises:
            ValueError: it does.
            OSError: the parts can't be read.
        """
        tables = (Parts.table, NpyParts.table)
        check_unclaimed(self.out, fingerprint(self.identity), tables)

    def check_ours(self) -> None:
        """Checks that the output is still this job's: somebody may have removed it since.

        Raises:
            FileNotFoundError: it was removed.
            ValueError: another job has begun in its place.
        """
        if not self.claim(dry=True):
            reason = "was removed during the run; start the same command again"
            raise FileNotFoundError(errno.ENOENT, reason, f"{self.out}/{JOB}")

    def take_noted_types(self) -> None:
        """Takes the column types in `job.json`, whichever process wrote it."""
        self.layout = self.layout.typed((read_job(self.out) or {}).get("types", ""))

    def outline(self) -> "Job":
        """Returns this job without its weights and its list of files, for other processes.

        They can load records, and write parts.
        """
        rows = dataclasses.replace(self.rows, shards=())
        return dataclasses.replace(
            self,
            opened=dataclasses.replace(self.opened, model=Configured(self.model.config)),
            rows=rows,
            layout=dataclasses.replace(self.layout, source=rows),
            grown=dataclasses.replace(self.grown, rows=rows, first=None, new=()),
        )

    @property
    def preprocess(self) -> Preprocess:
        """What makes pixels of pictures."""
        return self.pictures.applied_to(self.opened.preprocess)

    def loader(
        self,
        counts: Counts,
        gate: CpuGate,
        formats: Sequence[str],
        resizer: DeviceResizer | None = None,
    ) -> Loader:
        """Returns what turns the input's records into inputs of the encoder."""
        config, what = self.model.config, self.layout.what
        return Loader(
            preprocess=None if what == "texts" else self.preprocess,
            context_length=None if what == "images" else config.text.context_length,
            exif_transpose=self.exif_transpose,
            timing=counts.timing,
            gate=gate,
            formats=formats,
            tokens_of=self.opened.tokens,
            for_device=resizer and resizer.takes,
            most_area=MOST_AREA if resizer else 0,
        )


def prepare(
    source: str | os.PathLike[str],
    model: CLIP | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    what: What | None,
    preset: Preset,
    dtype: str,
    format: str,
    rows_per_part: int,
    columns: Columns,
    exif_transpose: bool,
    pictures: PictureOptions,
    extend: bool,
    options: LoadOptions,
    formats: Sequence[str] | None = None,
    where: str | Sequence[str] | None = None,
) -> Job:
    """Lists the input and loads the model; the arguments are those of `embed`.

    Raises:
        ValueError: the input lacks what is to be embedded, or matches the job's own parts; or what
            has been embedded of it is gone or has changed.
        OSError: the input can't be read.
    """
    source, out = plain(source), absolute(folder(out))
    rows = open_input(
        source,
        columns,
        suffixes=suffixes_of(formats),
        captions=what in ("texts", "both"),
        where=where,
    )
    if rows.instead and what != "texts":
        raise ValueError(rows.instead)
    if what is None and not rows.has_images and rows.unused:
        rows = dataclasses.replace(rows, remark=_texts_alone(source, rows))
    what = what or ("images" if rows.has_images else "texts")
    _check_has(source, rows, what)
    Layout(rows, what, columns.others, np.dtype(dtype), format)  # checks the columns
    name, opened = _opened(model, preset, options)
    model = opened.model
    if what != "images":
        opened.check_strings()
    size = model.config.vision.image_size
    identity = {
        "version": VERSION,
        "model": model_digest(model),
        "compute": f"{model.dtype}, precision {model.precision}",
        "pixels": list(size) if isinstance(size, tuple) else size,  # as JSON gives it back
        "exif_transpose": exif_transpose,
        "what": what,
        "dtype": dtype,
        "format": format,
        "rows_per_part": rows_per_part,
        "columns": [columns.image, columns.caption, columns.key, *columns.others],
        "input": rows.fingerprint,
        # Only where they are chosen: jobs begun before there were any go on.
        **pictures.chosen(),
        **({"where": rows.where.written()} if rows.where else {}),
        **({"class_names": sorted(rows.classes)} if rows.classes else {}),
        **_inputs_of_its_own(opened, options, what),
    }
    begun = read_job(out)
    growth = Grown(rows)
    if begun is not None and _are_alike(begun["identity"], identity):
        growth = _grown(rows, out, begun, identity, extend)
        identity["input"] = begun["identity"]["input"]
    rows = growth.rows
    layout = Layout(rows, what, columns.others, np.dtype(dtype), format)
    claimed = {
        "model": name,
        "source": absolute(source),
        "shards": len(rows.shards),
        "image_column": rows.columns.image,
        "embeddings": TOWERS[what],
        "dim": model.config.embed_dim,
        "types": layout.noted_types(),
        **({"load": given} if (given := options.given()) else {}),
    }
    about = {
        "fingerprint": fingerprint(identity),
        "model": identity["model"],
        "compute": identity["compute"],
        "embeddings": TOWERS[what],
        "normalized": True,
    }
    expected = Expected(
        TOWERS[what],
        model.config.embed_dim,
        dtype,
        columns.others,
        rows_per_part,
        len(rows.shards),
    )
    parts = (NpyParts if format == "npy" else Parts)(out, about, expected, growth.extensions)
    _check_apart(source, rows, parts)
    return Job(
        *(source, out, opened, rows, layout, identity, claimed, parts, exif_transpose),
        growth,
        pictures,
    )


def _are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities differ in nothing but their input."""
    return {**one, "input": ""} == {**other, "input": ""}


def _grown(
    rows: Input, out: str, job: dict[str, Any], identity: Mapping[str, Any], extend: bool
) -> Grown:
    try:
        found = grown(rows, out, job, parts_of(out, job), with_rows=extend)
    except Changed as error:
        lines = [f"  {problem}" for problem in error.problems[:SHOWN]]
        if more := len(error.problems) - SHOWN:
            lines += [f"  and {more:,} more"] * (more > 0)
        raise another_job(out, job, identity, lines) from None
    if found is None:
        raise another_job(out, job, identity)
    return found


def _inputs_of_its_own(opened: Opened, options: LoadOptions, what: What) -> dict[str, Any]:
    """Returns what of pixels and ids isn't as by default; earlier versions knew only the default.

    A job of theirs can't be continued with other inputs, and any other job can.
    """
    own: dict[str, Any] = {}
    if what != "texts" and options.preprocessing != "openai":
        own["preprocessing"] = repr(opened.preprocess)
    if what != "images" and opened.own_ids:
        own["tokenizer"] = opened.own_ids
    return own


def _opened(
    model: CLIP | str | os.PathLike[str], preset: Preset, options: LoadOptions
) -> tuple[str | None, Opened]:
    if isinstance(model, CLIP):
        if PRESETS[preset]:
            raise ValueError(f"preset={preset!r} is for models by name or path; cast this one")
        return None, open_model(model, options)
    name = os.fspath(model)
    name = os.path.abspath(name) if os.path.exists(name) else name
    return name, open_model(model, options, load, **PRESETS[preset])


def _check_has(source: str, rows: Input, what: str) -> None:
    if what != "texts" and not rows.has_images:
        raise ValueError(f"{source} has no pictures; what={what!r} needs some")
    if what != "images" and not rows.has_captions:
        others = f"; its other columns are {some(map(repr, rows.unused))}" if rows.unused else ""
        advice = ", and if one holds texts, say so by --caption-column (caption_column)"
        raise ValueError(
            f"{source} has no texts; what={what!r} needs some{others}{advice if others else ''}"
        )


def _texts_alone(source: str, rows: Input) -> str:
    """Returns what is told where a table's pictures may be in a column of another name."""
    others = some(map(repr, rows.unused))
    remark = (
        f"{source} has no column {rows.columns.image!r}, and its other columns are {others}: the "
        f"texts in {rows.columns.caption!r} are embedded. If one holds pictures, say so by "
        f"--image-column (image_column)"
    )
    return "; ".join(filter(None, (rows.remark, remark)))


def _check_apart(source: str, rows: Input, parts: Parts) -> None:
    """Checks that a pattern doesn't match the job's own parts, which each run would embed anew."""
    for shard in rows.shards:
        if parts.writes(shard.path):
            raise ValueError(
                f"{source} matches a part that this job has written, {shard.path}: give it a "
                "folder for its output that the pattern doesn't match"
            )
