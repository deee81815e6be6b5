"""`load`: returns a model and its preprocessing, given a name or a path."""

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax.typing import DTypeLike

from clip_jax.config import Activation, NumHeads, ResNetConfig, ViTConfig
from clip_jax.errors import CheckpointError
from clip_jax.image_size import ImageSize, as_image_size, shown_size, sides_of
from clip_jax.nn import CLIP, from_parameters
from clip_jax.pixel_config import PixelConfig
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.weights.finding import Found, find
from clip_jax.weights.memory import on_device
from clip_jax.weights.positions import PositionResize, check_rule, resize_vision
from clip_jax.weights.reading import read_found
from clip_jax.weights.tokenizers import Preprocessing


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    precision: str = "highest",
    download_root: str | os.PathLike[str] | None = None,
    activation: Activation | Literal["open_clip"] | None = None,
    num_heads: NumHeads | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    preprocessing: Preprocessing = "openai",
    image_size: ImageSize | None = None,
    position_resize: PositionResize | None = None,
    drop_remainder: bool = False,
) -> tuple[CLIP, Preprocess]:
    """Loads a model with its weights, and the preprocessing that its images need.

    The weights of a named model are downloaded once, to `download_root`, else `$CLIP_JAX_CACHE`,
    else `~/.cache/clip_jax`; a file that the PyTorch package keeps in `~/.cache/clip` is used as it
    is. They are also converted once; later loads memory-map the result.

    A folder is recognised by its files: `config.json` in clip_jax's own form, or with a
    `model_type` (Hugging Face's transformers), or `open_clip_config.json` (OpenCLIP).

    Activation and attention heads can't be inferred from a `.pt` or `.safetensors` file. OpenAI's
    own files are known by their checksums; of any other file, `open_clip_config.json` or
    `config.json` beside it says them, or `activation` and `num_heads` do. Images are then
    preprocessed as OpenAI's, unless such a configuration says otherwise.

    Args:
        name_or_path: one of `available_models()`; a native, Hugging Face or OpenCLIP folder; a
            `.pt` or `.safetensors` file with the official layout; a SigLIP checkpoint of
            big_vision, `.npz`, also by address (`gs://big_vision/...`); a repository of the Hugging
            Face Hub, "owner/name"; or OpenCLIP's architecture and tag, such as "ViT-H-14/dfn5b". A
            native folder is memory-mapped: while a model of it is in use, replace it as a whole (as
            `clip_jax.save` does), don't write into its files.
        dtype: dtype in which the towers compute; parameters are float32 in any case.
        precision: precision of matrix products, for `jax.default_matmul_precision`. "highest"
            is true float32 everywhere.
        download_root: the folder for downloaded weights.
        activation: the activation of the transformers, for a `.pt` or `.safetensors` file, which
            doesn't contain it. For a SigLIP model of OpenCLIP's, a folder or a name: "open_clip"
            for the activations that OpenCLIP computes, which are not always the tanh form that it
            was trained with.
        num_heads: the attention heads, for such a file: those of the vision tower, if the text
            tower's are 64 wide, as in every published model; or of the vision and the text tower.
        revision: the branch, tag or commit of a repository; "main" by default.
        subfolder: the folder in a repository or folder that holds the model.
        preprocessing: "openai" for pixels as the weights were trained with; "huggingface" for those
            of transformers' PIL image processor, for a folder of it.
        image_size: another size of a Vision Transformer's images: the side of a square, or
            (height, width). The positions of its patches are resized, and the preprocessing makes
            images of that size; of the size that the model has, nothing changes.
        position_resize: how the positions are resized: "open_clip", bicubic with antialiasing; or
            "huggingface", as transformers does with `interpolate_pos_encoding=True`. By default
            "huggingface" for transformers' folders and "open_clip" for all others.
        drop_remainder: whether `image_size` may be no multiple of the patch size. What is left of
            an image at the right and at the bottom is then not seen.

    Returns:
        The model, a `CLIP` or a `SigLIP`, and a callable from PIL image to float32 array.

    Raises:
        ValueError: there is no model of that name and nothing at that path, no such activation, or
            it or `num_heads` is given for a model that says its own; or the model can't take images
            of that size.
        CheckpointError: the weights can't be read or don't fit a CLIP model; lists all problems.
        DownloadError: they can't be downloaded; the message says how to put them there by hand.
    """
    found = find(name_or_path, download_root=download_root, revision=revision, subfolder=subfolder)
    told = None if activation == "open_clip" else activation  # which a folder may be given
    check_for_files(name_or_path, found, activation=told, num_heads=num_heads)
    check_preprocessing(preprocessing)
    resizing = Resizing(image_size, position_resize, drop_remainder)
    try:
        family, config, params = read_found(found, activation, num_heads)
    except CheckpointError as error:
        if found.advice is None:
            raise
        raise CheckpointError(f"{error}. Of {name_or_path}: {found.advice}") from None
    stored = config.vision
    vision = resizing.apply(name_or_path, family, stored, params)
    config = dataclasses.replace(config, vision=vision)
    preprocess = preprocess_of(
        name_or_path, found, family, stored, vision, config.pixels, preprocessing
    )
    params = on_device(params, adopt=family == "native")
    return from_parameters(config, params, dtype=dtype, precision=precision), preprocess


@dataclasses.dataclass(frozen=True)
class Resizing:
    """The size of images that is asked for, as the arguments of `load` of these names."""

    image_size: ImageSize | None = None
    position_resize: PositionResize | None = None
    drop_remainder: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is read.

        Raises:
            ValueError: there is no such rule, or a rule without a size.
        """
        if self.position_resize is not None:
            check_rule(self.position_resize)
        if self.image_size is not None:
            as_image_size(self.image_size)
        elif self.position_resize is not None or self.drop_remainder:
            raise ValueError(
                "position_resize and drop_remainder are about another size of the images: give it "
                "as image_size, or leave them out."
            )

    def apply(
        self,
        name_or_path: str | os.PathLike[str],
        family: str | None,
        vision: ViTConfig | ResNetConfig,
        params: dict[str, Any],
    ) -> ViTConfig | ResNetConfig:
        """Returns the tower's configuration at the size; resizes its positions in the tree.

        Raises:
            ValueError: the tower can't take images of that size.
        """
        if self.image_size is None:
            return vision
        if not isinstance(vision, ViTConfig):
            raise ValueError(
                f"image_size is for Vision Transformers; {os.fspath(name_or_path)!r} has a ResNet, "
                f"which takes images of {shown_size(vision.image_size)}: leave image_size out."
            )
        default = "huggingface" if family == "huggingface" else "open_clip"
        rule, visual = self.position_resize or default, dict(params["visual"])
        vision, visual["positional_embedding"] = resize_vision(
            vision,
            visual["positional_embedding"],
            self.image_size,
            rule,
            drop_remainder=self.drop_remainder,
        )
        params["visual"] = visual
        return vision


def check_for_files(name_or_path: str | os.PathLike[str], found: Found, **options: object) -> None:
    """Raises ValueError if what only a bare file needs is given for a model that says its own."""
    for option, value in options.items():
        if value is not None and (found.is_named or found.path.is_dir()):
            raise ValueError(
                f"{option} is only for .pt and .safetensors files; {os.fspath(name_or_path)!r} "
                f"knows its own. Got {value!r}."
            )


def check_preprocessing(preprocessing: str) -> None:
    """Raises ValueError if there is no such way to make pixels and ids."""
    if preprocessing not in get_args(Preprocessing):
        raise ValueError(f'preprocessing must be "openai" or "huggingface". Got {preprocessing!r}.')


def preprocess_of(
    name_or_path: str | os.PathLike[str],
    found: Found,
    family: str | None,
    stored: ViTConfig | ResNetConfig,
    vision: ViTConfig | ResNetConfig,
    pixels: PixelConfig,
    preprocessing: Preprocessing,
) -> Preprocess:
    """Returns the preprocessing of a model's images, by OpenAI's rules or by transformers'.

    Args:
        name_or_path: the model, for messages.
        found: where it is.
        family: whose form it has there.
        stored: the vision tower there.
        vision: the tower as it is used, maybe for images of another size.
        pixels: how OpenAI's rules are varied.
        preprocessing: whose rules.

    Raises:
        ValueError: transformers' are asked for, and the model is none of its folders.

    Warns:
        UserWarning: a folder of transformers crops less of a picture than OpenAI's rules do.
    """
    if preprocessing == "huggingface":
        if family != "huggingface":
            raise ValueError(
                f'preprocessing="huggingface" is for folders of Hugging Face\'s transformers, '
                f"which say it; {os.fspath(name_or_path)!r} is none."
            )
        return _of_folder(found.path, stored, pixels).of_size(vision.image_size)
    if family == "huggingface":
        _tell_crop(name_or_path, found.path, stored, pixels)
    return Preprocess(vision.image_size, pixels)


def _of_folder(
    folder: Path, vision: ViTConfig | ResNetConfig, pixels: PixelConfig
) -> HuggingFacePreprocess:
    assert isinstance(vision.image_size, int), "transformers' folders have square images"
    return HuggingFacePreprocess.from_folder(folder, vision.image_size, pixels)


def _tell_crop(
    name_or_path: str | os.PathLike[str],
    folder: Path,
    vision: ViTConfig | ResNetConfig,
    pixels: PixelConfig,
) -> None:
    """Warns if a folder of transformers has another crop than OpenAI's rules make."""
    try:
        resized = _of_folder(folder, vision, pixels).resized
        if resized in (None, vision.image_size, sides_of(vision.image_size)):
            return
        told = f"has pictures resized to {resized} and cropped to {shown_size(vision.image_size)}"
    except CheckpointError as error:
        told = f"can't be followed ({error})"
    warnings.warn(
        f"{os.fspath(name_or_path)}: its image processor {told}; OpenAI's way is taken, which "
        f'resizes to {shown_size(vision.image_size)}. preprocessing="huggingface" '
        f"(--preprocessing huggingface) takes the folder's",
        stacklevel=4,
    )
