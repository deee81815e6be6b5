"""`load`: encode functions from an exported folder."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jaxtyping import Float

from clip_jax.config import CLIPConfig
from clip_jax.convert.safetensors import read_safetensors
from clip_jax.errors import CheckpointError
from clip_jax.export.arguments import check_flatbuffers
from clip_jax.export.manifest import WEIGHTS, Manifest, check_content, check_programs, read_manifest
from clip_jax.inputs import as_array, as_tokens, is_float
from clip_jax.nn.pixels import normalize_pixels
from clip_jax.nn.text import pooled_positions
from clip_jax.placement import default_device
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.weights.tokenizers import tokenizer_beside

BATCH_SIZE = 32
TEXT_LENGTHS = (8, 16, 32)  # and the context length


class ExportedModel:
    """Embeds images and texts by an exported folder's programs.

    Attributes:
        manifest: what the folder says.
        config: the model's configuration.
        batch_size: rows of a batch; a larger input is divided, a last smaller one padded.
    """

    def __init__(
        self,
        manifest: Manifest,
        programs: dict[str, jax_export.Exported],
        weights: tuple[dict[str, jax.Array], ...],
        folder: Path,
    ):
        """Takes what `load` has read; the tokenizer is read from the folder for the first texts."""
        self.manifest, self._folder = manifest, folder
        self.config = CLIPConfig.from_json(json.dumps(manifest.config))
        self._programs = {kind: jax.jit(program.call) for kind, program in programs.items()}
        self._of_pixels = jax.jit(self._from_pixels)
        self._weights = weights
        rows = manifest.programs["image"].input.shape[0]
        self.batch_size = rows if isinstance(rows, int) else BATCH_SIZE

    def images(self, images: np.ndarray | jax.Array) -> Float[np.ndarray, "b d"]:
        """Embeds images.

        Args:
            images: as exported: (b, n, n, 3) normalised floats, or uint8 pixels, which are
                normalised on the device; or (b, height, width, 3) uint8 frames of the exported
                size. Any b, also 0.

        Returns:
            (b, d) float32.

        Raises:
            ValueError: the shape or dtype is another than the exported; both are said.
        """
        images = np.asarray(as_array(images, "images"))
        program = self.manifest.programs["image"].input
        sides, takes_floats = program.shape[1:], program.dtype != "uint8"
        if images.shape == (0,):  # an empty list
            images = np.zeros((0, *map(int, sides)), np.uint8)
        fits = images.dtype == np.uint8 or (takes_floats and is_float(images.dtype))
        if images.ndim != 4 or images.shape[1:] != sides or not fits:
            raise ValueError(
                f"the program was exported for {self.manifest.image_input} of shape "
                f"(b, {', '.join(map(str, sides))}) and dtype uint8"
                f"{', or normalised floats' if takes_floats else ''}. Got shape "
                f"{images.shape} and dtype {images.dtype}."
            )
        return self._run("image", images)

    def texts(
        self, texts: str | Sequence[str] | np.ndarray | jax.Array
    ) -> Float[np.ndarray, "b d"]:
        """Embeds texts.

        Args:
            texts: strings, or (b, l) token ids. Any number of them, also 0.

        Returns:
            (b, d) float32.

        Raises:
            ValueError: a text is too long, ids have a wrong shape or are out of range, or strings
                are given where the tokenizer isn't CLIP's and wasn't exported.
            ModuleNotFoundError: the extra `siglip` is missing, for strings of SigLIP.
        """
        text = self.config.text
        if not hasattr(texts, "dtype"):
            texts = self._tokenizer(texts)  # pyright: ignore[reportArgumentType]
        tokens = np.asarray(as_tokens(np.asarray(as_array(texts, "tokens")), text), np.int32)
        if self.manifest.programs["text"].input.shape[1] == "l" and len(tokens):
            # The same few lengths as an encoder's, so that few programs are compiled.
            longest = int(np.max(pooled_positions(tokens, text))) + 1
            tokens = tokens[:, : next((n for n in TEXT_LENGTHS if n >= longest), None)]
        return self._run("text", tokens)

    @functools.cached_property
    def _tokenizer(self) -> AnyTokenizer:
        return tokenizer_beside(self._folder, self.config)

    def _run(self, kind: str, rows: np.ndarray) -> Float[np.ndarray, "b d"]:
        parts = []
        for begin in range(0, len(rows), self.batch_size):
            part = rows[begin : begin + self.batch_size]
            batch = np.zeros((self.batch_size, *rows.shape[1:]), rows.dtype)
            batch[: len(part)] = part
            parts.append(self._call(kind, batch)[: len(part)])
        dimension = self.manifest.programs[kind].output.shape[1]
        return np.concatenate([np.empty((0, int(dimension)), np.float32), *parts])

    def _call(self, kind: str, batch: np.ndarray) -> np.ndarray:
        argument = jnp.asarray(batch)
        if kind == "image" and self.manifest.programs["image"].input.dtype != "uint8":
            if argument.dtype == jnp.uint8:
                return np.asarray(self._of_pixels(*self._weights, argument))
            argument = argument.astype(jnp.float32)
        return np.asarray(self._programs[kind](*self._weights, argument))

    def _from_pixels(self, *arguments: Any) -> jax.Array:
        *weights, pixels = arguments
        with jax.numpy_rank_promotion("allow"):
            images = normalize_pixels(pixels, self.manifest.mean, self.manifest.std)
        return self._programs["image"](*weights, images)


def load(folder: str | os.PathLike[str]) -> ExportedModel:
    """Loads an exported folder.

    Args:
        folder: what `export` or `clip-jax export` has written.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is none, is damaged, of a newer version, or for other platforms than
            JAX's here.
        ModuleNotFoundError: the package flatbuffers isn't installed.
    """
    check_flatbuffers()
    folder = Path(folder)
    manifest = read_manifest(folder)
    platform = default_device().platform
    names = ("cuda", "rocm") if platform == "gpu" else (platform,)
    if not set(names) & set(manifest.platforms):
        raise CheckpointError(
            f"{folder} was exported for {', '.join(manifest.platforms)}; JAX computes on "
            f"{platform} here: export the model with that platform too"
        )
    check_content(folder, manifest)
    programs = {
        kind: _program(folder / program.file) for kind, program in manifest.programs.items()
    }
    check_programs(folder, manifest, programs)
    weights = (_weights(folder / WEIGHTS),) if manifest.weights == "beside" else ()
    return ExportedModel(manifest, programs, weights, folder)


def _program(path: Path) -> jax_export.Exported:
    try:
        return jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and JAX raise errors of any kind
        raise CheckpointError(
            f"{path}: JAX {jax.__version__} can't read this program ({error}): it reads those of "
            f"the last six months; export the model again"
        ) from error


def _weights(path: Path) -> dict[str, jax.Array]:
    try:
        arrays, _ = read_safetensors(np.memmap(path, np.uint8, mode="c"))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return jax.device_put(arrays)
