"""`manifest.json`: what an exported folder holds, and how its programs are called."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.export import Exported

from clip_jax.config import CLIPConfig
from clip_jax.config_fields import Color
from clip_jax.convert.archive import shown
from clip_jax.convert.json_file import read_json
from clip_jax.errors import CheckpointError
from clip_jax.image_size import sides_of
from clip_jax.messages import some
from clip_jax.shapes import blocks, parameter_shapes

NAME = "manifest.json"
FORMAT, VERSION = "clip_jax.export", 1
ONNX_FORMAT = f"{FORMAT}.onnx"  # of a folder of ONNX graphs
IMAGE, TEXT, WEIGHTS, RUN = "image.stablehlo", "text.stablehlo", "model.safetensors", "run.py"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the folder: its name, size in bytes, and SHA-256."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "File":
        """Returns what is true of a file now."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(path.name, path.stat().st_size, digest)


@dataclasses.dataclass(frozen=True)
class Array:
    """An argument or result of a program: dtype and shape; "b" and "l" stand for any number."""

    dtype: str
    shape: tuple[int | str, ...]

    @classmethod
    def of(cls, aval: Any) -> "Array":
        """Returns JAX's description of an array as ours."""
        shape = tuple(side if isinstance(side, int) else str(side) for side in aval.shape)
        return cls(np.dtype(aval.dtype).name, shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of the folder.

    Attributes:
        file: its file's name.
        input: the batch that it takes.
        output: the embeddings that it returns.
    """

    file: str
    input: Array
    output: Array

    @classmethod
    def of(cls, file: str, program: Exported) -> "Program":
        """Returns what is true of a program."""
        return cls(file, Array.of(program.in_avals[-1]), Array.of(program.out_avals[0]))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        config: the model's configuration, as in `config.json`.
        platforms: the platforms that the programs were lowered for, by JAX's names.
        calling_convention: the version of jax.export's calling convention.
        image_input: "pixels" for images of the model's size, normalised by `mean` and `std`;
            "frames" for uint8 frames of one size, which the program resizes.
        normalized: whether embeddings have length 1.
        dtype: dtype in which the towers compute.
        mean: of the pixels' channels, of 1.
        std: their standard deviation.
        weights: "beside", the programs' first argument by name; or "inside" the programs.
        programs: by what they embed, "image" and "text".
        files: every file but this one.
        versions: of the packages that have made the folder.
    """

    config: dict[str, Any]
    platforms: tuple[str, ...]
    calling_convention: int
    image_input: str
    normalized: bool
    dtype: str
    mean: Color
    std: Color
    weights: str
    programs: dict[str, Program]
    files: tuple[File, ...]
    versions: dict[str, str]

    def to_json(self) -> str:
        """Returns the content of the file."""
        head = {"format": FORMAT, "version": VERSION}
        return json.dumps({**head, **dataclasses.asdict(self)}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads a folder's manifest, and compares it with the folder's files but for their content.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is no exported folder, of a newer version, or doesn't match its files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = folder / NAME
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {NAME}, so it is no exported model: give a folder that `clip-jax "
            f"export` has written"
        ) from None
    if document.get("format") == ONNX_FORMAT:
        raise CheckpointError(
            f"{folder} holds ONNX graphs, which ONNX Runtime loads: give a folder that was "
            f"exported to StableHLO"
        )
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: its format is {shown(repr(document.get('format')))}, expected {FORMAT!r}: "
            f"give a folder that `clip-jax export` has written"
        )
    if (version := document.get("version")) != VERSION:
        raise CheckpointError(
            f"{path} is of version {shown(repr(version))}; this clip_jax reads {VERSION}: upgrade "
            f"it, or export the model again"
        )
    try:
        manifest = _parsed(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {shown(str(error))}): export the model "
            f"again, or copy the folder again"
        ) from None
    _check_files(folder, manifest)
    return manifest


def check_content(folder: Path, manifest: Manifest) -> None:
    """Raises CheckpointError if a file's content isn't what was exported; names all of them."""
    changed = [file.name for file in manifest.files if File.of(folder / file.name) != file]
    if changed:
        raise CheckpointError(
            f"{folder}: {some(changed)} differ from their SHA-256 in {NAME}: damaged, or of "
            f"another export; copy the whole folder again, or export the model again"
        )


def check_programs(folder: Path, manifest: Manifest, programs: Mapping[str, Exported]) -> None:
    """Raises CheckpointError if the programs aren't what the manifest says; names all fields."""
    wrong = []
    for kind, program in programs.items():
        if Program.of(manifest.programs[kind].file, program) != manifest.programs[kind]:
            wrong.append(f"programs.{kind}")
        if (len(program.in_avals) == 1) != (manifest.weights == "inside"):
            wrong.append("weights")
        if set(program.platforms) != set(manifest.platforms):
            wrong.append("platforms")
        if manifest.weights == "beside" and not _takes_weights(program, manifest):
            wrong.append("config")
    if (manifest.programs["image"].input.dtype == "uint8") != (manifest.image_input == "frames"):
        wrong.append("image_input")
    if wrong:
        raise CheckpointError(
            f"{folder / NAME} says something else than its programs of {some(sorted(set(wrong)))}: "
            f"it has been changed; copy the folder again, or export the model again"
        )


def _takes_weights(program: Exported, manifest: Manifest) -> bool:
    """Whether a program's first argument has the arrays of the manifest's configuration."""
    config = CLIPConfig.from_json(json.dumps(manifest.config))
    arrays = [aval.shape for aval in program.in_avals[:-1]]
    if sum(blocks(config).values()) > len(arrays):  # or there would be no end to listing them
        return False
    shapes = parameter_shapes(config)
    return arrays == [shapes[path] for path in sorted(shapes)]


def _parsed(document: dict[str, Any]) -> Manifest:
    values = {field.name: document[field.name] for field in dataclasses.fields(Manifest)}
    for name in ("platforms", "mean", "std"):
        values[name] = tuple(values[name])
    values["files"] = tuple(File(**file) for file in values["files"])
    values["programs"] = {
        kind: Program(program["file"], *(_array(program[end]) for end in ("input", "output")))
        for kind, program in values["programs"].items()
    }
    manifest = Manifest(**values)
    if bad := [file.name for file in manifest.files if not _is_name(file.name)]:
        raise ValueError(f"{bad[0]!r} is no name of a file in this folder")
    for field, is_right in _rightness(manifest):
        if not is_right:
            raise ValueError(f"{field} is {document[field]!r}")
    _check_config(manifest)
    return manifest


def _rightness(manifest: Manifest) -> Iterator[tuple[str, bool]]:
    """Yields the fields, each with whether it may be so."""
    yield "platforms", bool(manifest.platforms) and all(map(_is_text, manifest.platforms))
    yield "image_input", manifest.image_input in ("pixels", "frames")
    yield "normalized", isinstance(manifest.normalized, bool)
    yield "weights", manifest.weights in ("beside", "inside")
    yield "files", all(type(file.size) is int for file in manifest.files)
    names = {file.name for file in manifest.files}
    # Only files whose content is compared with what was exported are ever read.
    yield "weights", manifest.weights == "inside" or WEIGHTS in names
    programs = manifest.programs
    yield "programs", set(programs) == {"image", "text"}
    yield "programs", all(_is_text(p.file) and p.file in names for p in programs.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return _is_text(value) and Path(value).name == value not in ("", "..") and "\0" not in value


def _check_config(manifest: Manifest) -> None:
    """Raises ValueError if the configuration is none, or says something else than the rest."""
    config = CLIPConfig.from_json(json.dumps(manifest.config))
    image, text = (manifest.programs[kind] for kind in ("image", "text"))
    length, dimension = config.text.context_length, config.embed_dim
    takes_sides = image.input.shape[1:] == (*sides_of(config.vision.image_size), 3)
    for what, agrees in (
        ("mean", manifest.mean == config.pixels.mean),
        ("std", manifest.std == config.pixels.std),
        ("image_size", manifest.image_input == "frames" or takes_sides),
        ("context_length", text.input.shape[1:] in ((length,), ("l",))),
        ("embed_dim", all(program.output.shape[1:] == (dimension,) for program in (image, text))),
    ):
        if not agrees:
            raise ValueError(f"config and the other fields differ in {what}")


def _array(document: dict[str, Any]) -> Array:
    return Array(str(document["dtype"]), tuple(document["shape"]))


def _check_files(folder: Path, manifest: Manifest) -> None:
    problems = []
    for file in manifest.files:
        try:
            size = (folder / file.name).stat().st_size
        except OSError:
            problems.append(f"{file.name} is missing")
            continue
        if size != file.size:
            problems.append(f"{file.name} has {size:,} bytes, expected {file.size:,}")
    if problems:
        raise CheckpointError(
            f"{folder} doesn't match its {NAME}: {'; '.join(problems)}: copy the whole folder "
            f"again, or export the model again"
        )
