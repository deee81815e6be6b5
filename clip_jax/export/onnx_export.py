"""`export_onnx`: writes a model as two graphs of ONNX."""

import importlib.metadata
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax import export as jax_export

from clip_jax.backends.half import cast
from clip_jax.backends.onnx.apply import use_onnx_operators
from clip_jax.backends.onnx.node import OPSET, node
from clip_jax.backends.onnx.towers import text_features
from clip_jax.convert.huggingface_tokenizer import folder_files
from clip_jax.export.arguments import (
    as_batch,
    check_evaluating,
    check_replaceable,
    check_tokenizer,
)
from clip_jax.export.exporting import image_sides
from clip_jax.export.manifest import NAME, ONNX_FORMAT, VERSION, File
from clip_jax.nn import CLIP, normalize
from clip_jax.nn.tree import variables
from clip_jax.replace import replacing
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.version import __version__

Layout = Literal["nhwc", "nchw"]

FILES = {"image": "image.onnx", "text": "text.onnx"}
BATCH, LENGTH = "batch_size", "sequence_length"  # of any size; transformers' names
MOST = (1 << 31) - (1 << 24)  # bytes: a file of protobuf must stay below 2 GiB


def export_onnx(
    model: CLIP,
    folder: str | os.PathLike[str],
    *,
    layout: Layout = "nhwc",
    batch: int | None = None,
    normalize: bool = False,
    tokenizer: AnyTokenizer | None = None,
    replace: bool = False,
) -> None:
    """Writes a folder of ONNX graphs, which embed images and texts by ONNX Runtime and others.

    It holds `image.onnx` and `text.onnx` with their weights in float32, the tokenizer's files, and
    `manifest.json`; the weights of a tower of 2 GB and more in a file beside its graph. Inputs and
    outputs are named as in exports of transformers: `pixel_values` to `image_embeds`, `input_ids`
    (int64) to `text_embeds`. The write is atomic.

    Args:
        model: the model.
        folder: the folder, which is created with its parents.
        layout: "nhwc" for images (b, n, n, 3) as `preprocess` returns them, or "nchw" for
            (b, 3, n, n), which most other programs make.
        batch: rows of a batch; by default any number from 1 on.
        normalize: whether to divide each embedding by its L2 norm.
        tokenizer: a SigLIP model's own, or one with tokens added to CLIP's, as
            `clip_jax.load_tokenizer` returns it; its files are written in place of CLIP's.
        replace: whether to replace an exported folder that exists.

    Raises:
        ValueError: an argument is wrong; the model has an operation that jax2onnx can't translate,
            which is named.
        TypeError: `model` is no model of both towers, or `tokenizer` no tokenizer.
        FileExistsError: the folder exists, and is no exported one or not to be replaced.
        ModuleNotFoundError: jax2onnx isn't installed.
        OSError: it can't be written; nothing is left behind.
    """
    check_evaluating(model)
    check_tokenizer(tokenizer, model.config.text)
    batch = as_batch(batch)
    if layout not in get_args(Layout):
        raise ValueError(f'layout must be "nhwc" or "nchw". Got {layout!r}.')
    check_jax2onnx()
    sizes = _sizes(model)
    target = Path(os.path.realpath(folder))  # a link stays a link
    check_replaceable(target, replace)
    graphs = {
        "image": _image_graph(model, layout, batch, normalize),
        "text": _text_graph(model, batch, normalize),
    }
    with replacing(target, replace=True) as new:
        for name, content in folder_files(model.config.text, tokenizer).items():
            (new / name).write_bytes(content)
        written = {
            kind: _write(graph, new / FILES[kind], is_large=sizes[kind] > MOST)
            for kind, graph in graphs.items()
        }
        files = [File.of(path) for path in sorted(new.iterdir())]
        manifest = _manifest(model, written, files, layout, normalize)
        (new / NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        check_replaceable(target, replace)  # again: it may have changed meanwhile


def check_jax2onnx() -> None:
    """Raises ModuleNotFoundError if what writes ONNX isn't installed."""
    try:
        import jax2onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"export to ONNX needs {error.name}: pip install 'clip-jax-flax[onnx]'",
            name=error.name,
        ) from None


def _sizes(model: CLIP) -> dict[str, int]:
    """Returns the bytes of each tower's weights in float32."""
    sizes = dict.fromkeys(FILES, 0)
    for path, variable in variables(model).items():
        sizes["image" if path.startswith("visual/") else "text"] += 4 * variable[...].size
    return sizes


def _image_graph(model: CLIP, layout: Layout, batch: int | None, normalized: bool) -> Any:
    model = _with_operators(model)
    shape = (_rows(batch), *image_sides(model), 3)
    return _translated(
        lambda images: _finished(model.visual(images), normalized),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        ("pixel_values", "image_embeds"),
        inputs_as_nchw=[0] if layout == "nchw" else None,
    )


def _text_graph(model: CLIP, batch: int | None, normalized: bool) -> Any:
    model = _with_operators(model)
    text = model.config.text
    rows, length = _rows(batch), text.context_length
    if text.can_be_cut:  # what follows the end token has no effect and can be left out
        names = f"{BATCH if batch is None else batch}, {LENGTH}"
        rows, length = jax_export.symbolic_shape(names, constraints=[f"{LENGTH} <= {length}"])
    return _translated(
        lambda tokens: _finished(text_features(model, tokens), normalized),
        jax.ShapeDtypeStruct((rows, length), jnp.int32),
        ("input_ids", "text_embeds"),
    )


def _with_operators(model: CLIP) -> CLIP:
    copy = cast(model, jnp.float32)
    use_onnx_operators(copy)
    return copy


def _rows(batch: int | None) -> Any:
    return jax_export.symbolic_shape(BATCH)[0] if batch is None else batch


def _finished(embeddings: Array, normalized: bool) -> Array:
    return (
        node("LpNormalization", normalize, embeddings, axis=-1, p=2) if normalized else embeddings
    )


def _translated(
    function: Callable[[Array], Array],
    argument: jax.ShapeDtypeStruct,
    names: tuple[str, str],
    **options: Any,
) -> Any:
    """Returns a function as a graph of ONNX, in the form of `onnx_ir`."""
    from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    from clip_jax.export import onnx_plugin  # noqa: F401  (registers itself)

    try:
        return to_onnx(
            function,
            [argument],
            model_name=names[1],
            opset=OPSET,
            input_names=[names[0]],
            output_names=[names[1]],
            return_mode="ir",
            **options,
        )
    except NotImplementedError as error:
        found = re.search(r"primitive\s+'([^']+)'", str(error))
        what = f"JAX's {found[1]}" if found else str(error).splitlines()[0]
        raise ValueError(
            f"jax2onnx {importlib.metadata.version('jax2onnx')} can't translate {what} to ONNX, "
            f"which computes {names[1]} of this model: export it to StableHLO instead"
        ) from error


def _take_int64(graph: Any) -> None:
    """Lets a graph take int64 ids, as tokenizers make them, where JAX has int32."""
    from onnx import TensorProto, helper  # pyright: ignore[reportMissingImports]

    (ids,) = graph.graph.input
    narrow = f"{ids.name}_int32"
    for taker in graph.graph.node:
        for i, name in enumerate(taker.input):
            if name == ids.name:
                taker.input[i] = narrow
    ids.type.tensor_type.elem_type = TensorProto.INT64
    cast = helper.make_node("Cast", [ids.name], [narrow], to=TensorProto.INT32)
    graph.graph.node.insert(0, cast)


def _write(graph: Any, path: Path, *, is_large: bool) -> Any:
    """Writes a graph, and returns it; of a large one without weights, which get their own file."""
    import onnx  # pyright: ignore[reportMissingImports]
    import onnx_ir  # pyright: ignore[reportMissingImports]

    beside = f"{path.name}.data" if is_large else None
    onnx_ir.save(graph, path, external_data=beside)
    written = onnx.load(path, load_external_data=False)
    if written.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT32:
        _take_int64(written)
        onnx.save(written, path)
    onnx.checker.check_model(path, full_check=True)
    return written


def _manifest(
    model: CLIP, graphs: dict[str, Any], files: list[File], layout: Layout, normalized: bool
) -> dict[str, Any]:
    packages = ("jax", "jax2onnx", "onnx")
    return {
        "format": ONNX_FORMAT,
        "version": VERSION,
        "config": json.loads(model.config.to_json()),
        "opset": int(next(x.version for x in graphs["image"].opset_import if not x.domain)),
        "layout": layout,
        "normalized": normalized,
        "dtype": "float32",
        "mean": list(model.config.pixels.mean),
        "std": list(model.config.pixels.std),
        "programs": {
            kind: {
                "file": name,
                "input": _array(graphs[kind].graph.input[0]),
                "output": _array(graphs[kind].graph.output[0]),
            }
            for kind, name in FILES.items()
        },
        "files": [vars(file) for file in files],
        "versions": {
            "clip_jax": __version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def _array(value: Any) -> dict[str, Any]:
    """Returns an input or output of a graph: its name, dtype and shape."""
    from onnx import helper  # pyright: ignore[reportMissingImports]

    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = [side.dim_param or side.dim_value for side in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}
