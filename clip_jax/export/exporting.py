"""`export`: writes a model as StableHLO programs, its weights and a manifest."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.typing import DTypeLike

from clip_jax.convert.huggingface_tokenizer import folder_files
from clip_jax.convert.safetensors import write_safetensors
from clip_jax.export.arguments import (
    Options,
    check_cleaning,
    check_evaluating,
    check_flatbuffers,
    check_replaceable,
    check_tokenizer,
)
from clip_jax.export.manifest import (
    IMAGE,
    NAME,
    RUN,
    TEXT,
    WEIGHTS,
    File,
    Manifest,
    Program,
)
from clip_jax.export.programs import Function, Functions, ImageInput, functions_of, shapes_of
from clip_jax.image_size import sides_of
from clip_jax.nn import CLIP
from clip_jax.replace import replacing
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.version import __version__

MOST_INSIDE = (1 << 31) - (1 << 24)  # bytes: a serialised program must stay below 2 GiB


def export(
    model: CLIP,
    folder: str | os.PathLike[str],
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    image_input: ImageInput = "pixels",
    frame_size: tuple[int, int] | None = None,
    dtype: DTypeLike | None = None,
    normalize: bool = False,
    weights: Literal["beside", "inside"] = "beside",
    tokenizer: AnyTokenizer | None = None,
    replace: bool = False,
) -> None:
    """Writes a folder from which JAX embeds images and texts without this package.

    It holds `image.stablehlo` and `text.stablehlo`, programs for all platforms as `jax.export`
    writes them; `model.safetensors`, their first argument by name; `run.py`, which runs them with
    JAX and NumPy alone; the tokenizer's files; and `manifest.json`. JAX runs such programs
    for at least six months after the version that wrote them. The write is atomic.

    Args:
        model: the model.
        folder: the folder, which is created with its parents.
        platforms: the platforms to lower for: "cpu", "cuda", "rocm", "tpu".
        batch: rows of a batch; by default any number from 1 on.
        image_input: "pixels" for (b, n, n, 3) float32 images as `preprocess` returns them; "frames"
            for (b, height, width, 3) uint8 frames, which the program resizes, crops and normalises,
            equal to Pillow to the bit.
        frame_size: height and width of the frames.
        dtype: dtype in which the towers compute and in which weights are stored; by default the
            model's.
        normalize: whether to divide each embedding by its L2 norm.
        weights: "beside" the programs in a file, or "inside" both of them, below 2 GB.
        tokenizer: a SigLIP model's own, or one with tokens added to CLIP's, as
            `clip_jax.load_tokenizer` returns it; its files are written in place of CLIP's.
        replace: whether to replace an exported folder that exists.

    Raises:
        ValueError: an argument is wrong, or they don't go together.
        TypeError: `model` is no model of both towers, or `tokenizer` no tokenizer.
        FileExistsError: the folder exists, and is no exported one or not to be replaced.
        ModuleNotFoundError: flatbuffers isn't installed, without which JAX can't serialise.
        OSError: it can't be written; nothing is left behind.

    Example:
        >>> import tempfile, clip_jax
        >>> model, _ = clip_jax.load("emoji")
        >>> folder = tempfile.mkdtemp()
        >>> clip_jax.export.export(model, folder, platforms=["cpu"])
        >>> clip_jax.export.load(folder).texts(["a pear"]).shape
        (1, 128)
    """
    check_evaluating(model)
    check_tokenizer(tokenizer, model.config.text)
    check_cleaning(tokenizer)
    options = Options.of(
        platforms=platforms,
        batch=batch,
        image_input=image_input,
        frame_size=frame_size,
        dtype=model.dtype if dtype is None else dtype,
        weights=weights,
    )
    check_flatbuffers()
    target = Path(os.path.realpath(folder))  # a link stays a link
    check_replaceable(target, replace)
    functions = functions_of(
        model, dtype=options.dtype, normalized=normalize, frame_size=options.frame_size
    )
    if weights == "inside" and (size := _size(functions)) > MOST_INSIDE:
        raise ValueError(
            f'weights="inside" is for less than 2 GB. Got {size / 1e9:.1f} GB: leave it out, or '
            f'give dtype="bfloat16".'
        )
    exported = {
        kind: _exported(function, functions, arguments, options.platforms, weights)
        for kind, function, arguments in (
            ("image", functions.image, _image_shape(model, options.batch, options.frame_size)),
            ("text", functions.text, _text_shape(model, options.batch)),
        )
    }
    with replacing(target, replace=True) as new:
        for name, content in folder_files(model.config.text, tokenizer).items():
            (new / name).write_bytes(content)
        script = resources.files("clip_jax.data").joinpath("run_exported.py").read_bytes()
        (new / RUN).write_bytes(script)
        for name, program in ((IMAGE, exported["image"]), (TEXT, exported["text"])):
            (new / name).write_bytes(program.serialize())
        if weights == "beside":
            write_safetensors(new / WEIGHTS, functions.weights, None, {"format": "clip_jax"})
        files = tuple(File.of(path) for path in sorted(new.iterdir()))
        manifest = _manifest(model, exported, files, image_input, normalize, options.dtype, weights)
        (new / NAME).write_text(manifest.to_json(), encoding="utf-8")
        check_replaceable(target, replace)  # again: it may have changed meanwhile


def image_sides(model: CLIP) -> tuple[int, int]:
    """Returns the height and width of a model's images."""
    return sides_of(model.config.vision.image_size)


def _image_shape(
    model: CLIP, batch: int | None, frame_size: tuple[int, int] | None
) -> jax.ShapeDtypeStruct:
    rows = jax_export.symbolic_shape("b")[0] if batch is None else batch
    sides, dtype = (frame_size, jnp.uint8) if frame_size else (image_sides(model), jnp.float32)
    return jax.ShapeDtypeStruct((rows, *sides, 3), dtype)


def _text_shape(model: CLIP, batch: int | None) -> jax.ShapeDtypeStruct:
    text = model.config.text
    # Where the mask is causal, what follows the end token has no effect and can be left out.
    names = ["b" if batch is None else str(batch), "l" if text.can_be_cut else ""]
    names[1] = names[1] or str(text.context_length)
    limits = [f"l <= {text.context_length}"] if text.can_be_cut else []
    shape = jax_export.symbolic_shape(", ".join(names), constraints=limits)
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _exported(
    function: Function,
    functions: Functions,
    argument: jax.ShapeDtypeStruct,
    platforms: tuple[str, ...],
    weights: str,
) -> jax_export.Exported:
    if weights == "beside":
        jitted, shapes = jax.jit(function), (shapes_of(functions.weights), argument)
    else:
        jitted, shapes = jax.jit(lambda rows: function(functions.weights, rows)), (argument,)
    with _without_folders():
        return jax_export.export(jitted, platforms=platforms)(*shapes)


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """Keeps the names of this machine's folders out of the programs lowered in the block.

    Programs say from which lines of code their operations come. With its folders, two machines
    would write different files of one model, and give away where its owner keeps what.
    """
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, "^.*/")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _manifest(
    model: CLIP,
    exported: dict[str, jax_export.Exported],
    files: tuple[File, ...],
    image_input: str,
    normalized: bool,
    dtype: np.dtype,
    weights: str,
) -> Manifest:
    programs = {
        kind: Program.of(name, program)
        for name, (kind, program) in zip((IMAGE, TEXT), exported.items(), strict=True)
    }
    pixels = model.config.pixels
    return Manifest(
        config=json.loads(model.config.to_json()),
        platforms=exported["image"].platforms,
        calling_convention=exported["image"].calling_convention_version,
        image_input=image_input,
        normalized=normalized,
        dtype=dtype.name,
        mean=pixels.mean,
        std=pixels.std,
        weights=weights,
        programs=programs,
        files=files,
        versions={"clip_jax": __version__, "jax": jax.__version__},
    )


def _size(functions: Functions) -> int:
    return sum(array.size * array.dtype.itemsize for array in functions.weights.values())
