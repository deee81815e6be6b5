"""`export`: writes a model as StableHLO programs, its weights and a manifest."""

import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.typing import DTypeLike

from clip_jax.convert.huggingface_tokenizer import folder_files
from clip_jax.convert.safetensors import write_safetensors
from clip_jax.export.manifest import (
    FORMAT,
    IMAGE,
    NAME,
    RUN,
    TEXT,
    WEIGHTS,
    Array,
    File,
    Manifest,
    Program,
)
from clip_jax.export.programs import Function, Functions, ImageInput, functions_of, shapes_of
from clip_jax.image_size import sides_of
from clip_jax.nn import CLIP
from clip_jax.nn.clip import check_model
from clip_jax.replace import replacing
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.version import __version__

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
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
    dtype = np.dtype(model.dtype if dtype is None else dtype)
    _check(platforms, batch, image_input, frame_size, dtype, weights)
    check_flatbuffers()
    target = Path(os.path.realpath(folder))  # a link stays a link
    check_replaceable(target, replace)
    functions = functions_of(
        model, dtype=dtype, normalized=normalize, frame_size=frame_size if frame_size else None
    )
    if weights == "inside" and (size := _size(functions)) > MOST_INSIDE:
        raise ValueError(
            f'weights="inside" is for less than 2 GB. Got {size / 1e9:.1f} GB: leave it out, or '
            f'give dtype="bfloat16".'
        )
    exported = {
        kind: _exported(function, functions, arguments, tuple(platforms), weights)
        for kind, function, arguments in (
            ("image", functions.image, _image_shape(model, batch, frame_size)),
            ("text", functions.text, _text_shape(model, batch)),
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
        manifest = _manifest(model, exported, files, image_input, normalize, dtype, weights)
        (new / NAME).write_text(manifest.to_json(), encoding="utf-8")
        check_replaceable(target, replace)  # again: it may have changed meanwhile


def check_flatbuffers() -> None:
    """Raises ModuleNotFoundError if JAX lacks what it serialises programs with."""
    try:
        import flatbuffers  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "jax.export keeps programs with flatbuffers: pip install 'clip-jax-flax[export]'",
            name="flatbuffers",
        ) from None


def check_evaluating(model: CLIP) -> None:
    """Raises ValueError if a model is in training mode, TypeError if it is none."""
    check_model(model)
    if not model.use_running_average:
        raise ValueError("the model is in training mode: call model.eval() first.")


def check_batch(batch: int | None) -> None:
    """Raises ValueError if it isn't a number of rows, or None for any."""
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch must be at least 1, or None for any number. Got {batch}.")


def _check(
    platforms: Sequence[str],
    batch: int | None,
    image_input: str,
    frame_size: tuple[int, int] | None,
    dtype: np.dtype,
    weights: str,
) -> None:
    names = [platforms] if isinstance(platforms, str) else list(platforms)
    if unknown := [name for name in names if name not in PLATFORMS]:
        hint = "; for GPUs say cuda or rocm" if "gpu" in unknown else ""
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}{hint}. Got {unknown}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"platforms must be named once each, at least one. Got {names}.")
    if dtype == jnp.float16 and "tpu" in names:
        raise ValueError("TPUs don't compute in float16: give bfloat16, or platforms without tpu.")
    check_batch(batch)
    if image_input not in get_args(ImageInput):
        raise ValueError(f'image_input must be "pixels" or "frames". Got {image_input!r}.')
    if (image_input == "frames") != (frame_size is not None):
        raise ValueError(
            'image_input="frames" and frame_size=(height, width) go together. '
            f"Got {image_input!r} and {frame_size}."
        )
    if weights not in ("beside", "inside"):
        raise ValueError(f'weights must be "beside" or "inside". Got {weights!r}.')


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
    return jax_export.export(jitted, platforms=platforms)(*shapes)


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
        kind: Program(name, _array(program.in_avals[-1]), _array(program.out_avals[0]))
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


def _array(aval: Any) -> Array:
    shape = tuple(side if isinstance(side, int) else str(side) for side in aval.shape)
    return Array(np.dtype(aval.dtype).name, shape)


def _size(functions: Functions) -> int:
    return sum(array.size * array.dtype.itemsize for array in functions.weights.values())


def check_replaceable(folder: Path, replace: bool) -> None:
    """Raises FileExistsError if the folder is something else, or not to be replaced."""
    if not folder.exists() or (folder.is_dir() and not os.listdir(folder)):
        return
    manifest = folder / NAME
    is_ours = manifest.is_file() and FORMAT.encode() in manifest.read_bytes()[:1000]
    if not is_ours:
        raise FileExistsError(
            f"{folder} exists and is no exported model: choose another name, or remove it first"
        )
    if not replace:
        raise FileExistsError(f"{folder} exists already: choose another name, or remove it first")
