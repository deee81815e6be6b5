"""The model that is compared, and the library that it is compared with.

OpenAI's files are compared with the reference, OpenCLIP's and Hugging Face's with the library whose
format they have. A native folder is exported for the reference, or for OpenCLIP, if its model isn't
of OpenAI's architecture. One of SigLIP is exported for transformers, and so is big_vision's file.
"""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from clip_jax.catalog import CATALOG
from clip_jax.config import Activation, CLIPConfig, NumHeads, SigLIPConfig
from clip_jax.convert import to_huggingface
from clip_jax.convert.deviations import deviations
from clip_jax.convert.families import SIGLIP_TEXT, SIGLIP_VISION, TEXT, VISION, family_of
from clip_jax.convert.huggingface import read_config
from clip_jax.convert.npz import is_npz
from clip_jax.convert.open_clip import described, from_open_clip, to_open_clip
from clip_jax.convert.reader import read_checkpoint
from clip_jax.convert.single_file import text_towers
from clip_jax.image_size import ImageSize, as_image_size, shown_size
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.nn import SigLIP, from_parameters
from clip_jax.open_clip_catalog import lookup_tag
from clip_jax.parity.comparison import Model
from clip_jax.parity.huggingface import load_huggingface, load_text_tower
from clip_jax.parity.open_clip import load_open_clip
from clip_jax.parity.peer import Peer
from clip_jax.parity.pytorch import load_reference
from clip_jax.parity.reference import import_library, import_reference
from clip_jax.preprocess import Preprocess
from clip_jax.preprocess_huggingface import HuggingFacePreprocess
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.weights import load, load_text_model, load_vision_model, read_native
from clip_jax.weights.finding import find
from clip_jax.weights.reading import read_model
from clip_jax.weights.tokenizers import load_tokenizer, tokenizer_of

Library = Literal["clip-anytorch", "open_clip_torch", "transformers"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to be compared, with the library that it is compared with.

    Attributes:
        name: its name or path, as the caller gave it.
        library: the package that it is compared with.
        path: its folder or file; None for OpenAI's and bundled models, which have names.
        document: OpenCLIP's configuration of weights that don't come with one.
        bare: what a bare file doesn't say, as arguments of `clip_jax.load`.
        subfolder: the folder in `path`, or the text tower of a single file of Stable Diffusion.
        image_size: the size of its images, if it isn't its own.
    """

    name: str
    library: Library
    path: Path | None = None
    document: Mapping[str, Any] | None = None
    bare: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    subfolder: str | None = None
    image_size: ImageSize | None = None

    def load(self) -> tuple[Model, Preprocess | None, AnyTokenizer | None]:
        """Loads it in JAX, with pixels and ids as the library makes them; as `clip_jax.load`."""
        if self.library == "transformers":
            if self._is_exported():
                model, preprocess = load(self.name, subfolder=self.subfolder)
                preprocess = HuggingFacePreprocess(preprocess.image_size, preprocess.config)
                return model, preprocess, tokenizer_of(model.config.text, "huggingface")
            return self._of_transformers()
        if self.library == "open_clip_torch" and self.path is not None and self.path.is_file():
            config, params = from_open_clip(self.path, model=self.document)
            model = from_parameters(config, params)
            preprocess = Preprocess(config.vision.image_size, config.pixels)
        else:
            options = {"subfolder": self.subfolder, **self._size()}
            model, preprocess = load(self.name, **options, **self.bare)
            if isinstance(model, SigLIP):  # by the activations that OpenCLIP gives it
                model, preprocess = load(self.name, **options, activation="open_clip")
            if self.library == "clip-anytorch":
                _check_reference_has(self.name, model.config)
        text = model.config.text
        rules = "open_clip" if self.library == "open_clip_torch" else "openai"
        return model, preprocess, Tokenizer(text.context_length, rules, missing=text.tokenizer)

    def _of_transformers(self) -> tuple[Model, Preprocess | None, AnyTokenizer | None]:
        assert self.path is not None
        options: dict[str, Any] = {"subfolder": self.subfolder, "preprocessing": "huggingface"}
        kind = TEXT if self.path.is_file() else read_config(self.path)["model_type"]
        if kind in (TEXT, SIGLIP_TEXT):
            model, tokenizer = load_text_model(self.name, **options)
            return model, None, tokenizer
        if kind in (VISION, SIGLIP_VISION):
            return *load_vision_model(self.name, **options, **self._size()), None
        tokenizer = load_tokenizer(self.name, **options)
        return *load(self.name, **options, **self._size()), tokenizer

    def _size(self) -> dict[str, Any]:
        return {} if self.image_size is None else {"image_size": self.image_size}

    def _is_exported(self) -> bool:
        """Whether transformers is given an export: of a SigLIP model in a form that it lacks."""
        assert self.path is not None
        if self.path.is_file():
            return is_npz(self.path)
        return family_of(self.path) == "native"

    def load_peer(self) -> Peer:
        """Loads it into the library.

        Raises:
            ModuleNotFoundError: the library or PyTorch is missing; the message says how to install
                them.
            CheckpointError: the library can't read it.
        """
        if self.library == "transformers":
            assert self.path is not None
            if self._is_exported():
                with tempfile.TemporaryDirectory() as made:
                    exported = Path(made, "exported")
                    to_huggingface(*read_model(self.path)[1:], exported)
                    return load_huggingface(exported)
            if self.path.is_file():
                return load_text_tower(self.path, self.subfolder)
            assert self.image_size is None or isinstance(self.image_size, int)
            return load_huggingface(self.path, self.image_size)
        if self.library == "open_clip_torch":
            assert self.path is not None
            if self.path.is_dir() and family_of(self.path) == "native":
                with tempfile.TemporaryDirectory() as made:
                    exported = Path(made, "exported")
                    to_open_clip(*read_native(self.path), exported)
                    return load_open_clip(exported, image_size=self.image_size)
            return load_open_clip(self.path, self.document, self.image_size)
        return load_reference(self.name)


def _check_reference_has(name: str, config: CLIPConfig) -> None:
    """Raises ValueError if a file's model isn't as the reference would compute it."""
    if lost := {k: v for k, v in deviations(config).items() if k not in ("resnet", "pixels")}:
        raise ValueError(
            f"the reference has no {', nor '.join(lost.values())}: compare {name} with OpenCLIP, "
            f"by naming its model there (model=, --model), such as ViT-B-32"
        )


def find_subject(
    name_or_path: str | os.PathLike[str],
    *,
    model: str | Mapping[str, Any] | None = None,
    activation: Activation | None = None,
    num_heads: NumHeads | None = None,
    subfolder: str | None = None,
    image_size: ImageSize | None = None,
) -> Subject:
    """Finds a model, and the library that it is to be compared with, which must be installed.

    Args:
        name_or_path: as for `clip_jax.load`.
        model: for a file of OpenCLIP's: which model it holds, as for
            `clip_jax.convert.from_open_clip`.
        activation: for such a file and an architecture: the GELU that it was trained with; or of a
            bare file, as for `clip_jax.load`.
        num_heads: of a bare file, as for `clip_jax.load`.
        subfolder: the folder in a repository or folder; or which text tower of a single file of
            Stable Diffusion, "text_encoder" or "text_encoder_2".
        image_size: another size of its images, as for `clip_jax.load`, where the library takes one.

    Raises:
        ModuleNotFoundError: the library or PyTorch is missing; the message says how to install
            them. Nothing is downloaded then.
        ValueError: there is no such model, or `model` or `activation` is unknown, or not for it.
        CheckpointError: it is of a kind that isn't supported.
        DownloadError: it can't be downloaded.
    """
    if image_size is None:
        return _found(name_or_path, model, activation, num_heads, subfolder)
    image_size = as_image_size(image_size)
    # Of a native folder, the library must be one that takes other sizes.
    subject = _found(name_or_path, model, activation, num_heads, subfolder, has_sizes=True)
    is_file = subject.path is not None and subject.path.is_file()
    if subject.library == "clip-anytorch" or is_file:
        raise ValueError(
            f"image_size is for folders and names of OpenCLIP's, native folders and those of "
            f"transformers, with whose libraries other sizes can be compared. Got "
            f"{os.fspath(name_or_path)!r}: convert it to a folder first."
        )
    if subject.library == "transformers" and not isinstance(image_size, int):
        raise ValueError(
            f"transformers' pixels are squares, expected one number as image_size. Got "
            f"{shown_size(image_size)}."
        )
    return dataclasses.replace(subject, image_size=image_size)


def _found(
    name_or_path: str | os.PathLike[str],
    model: str | Mapping[str, Any] | None,
    activation: Activation | None,
    num_heads: NumHeads | None,
    subfolder: str | None,
    *,
    has_sizes: bool = False,
) -> Subject:
    name = os.fspath(name_or_path)
    told = {"activation": activation, "num_heads": num_heads}
    bare = {option: value for option, value in told.items() if value is not None}
    if bare and not os.path.isfile(name):
        raise ValueError(f"{', '.join(bare)}: only for bare files; {name!r} says its own.")
    if model is not None:
        if num_heads is not None:
            raise ValueError(f"num_heads is for a file without model; {model!r} says its own.")
        if not os.path.isfile(name):
            raise ValueError(
                f"model is for a file of OpenCLIP's, which doesn't say what it holds; {name!r} is "
                f"no file."
            )
        import_library("open_clip")
        return Subject(name, "open_clip_torch", Path(name), described(model, activation))
    if os.path.isfile(name) and is_npz(name):
        import_library("transformers")
        return Subject(name, "transformers", Path(name))
    if os.path.isfile(name) and text_towers(read_checkpoint(name)):
        import_library("transformers")
        return Subject(name, "transformers", Path(name), subfolder=subfolder)
    if subfolder is not None and (name in CATALOG or os.path.isfile(name)):
        raise ValueError(
            f"subfolder is for folders, repositories and single files of Stable Diffusion. Got "
            f"{subfolder!r} for {name!r}."
        )
    if name in CATALOG or os.path.isfile(name):
        import_reference()
        return Subject(name, "clip-anytorch", None if name in CATALOG else Path(name), bare=bare)
    if not os.path.exists(name) and "/" in name and lookup_tag(name):
        import_library("open_clip")
    found = find(name, subfolder=subfolder)
    if found.document is not None:
        return Subject(name, "open_clip_torch", found.path, found.document)
    family = family_of(found.path)
    library: Library = "open_clip_torch"
    if family == "huggingface":
        import_library("transformers")
        library = "transformers"
    elif family == "native" and isinstance(read_native(found.path)[0], SigLIPConfig):
        import_library("transformers")
        library = "transformers"
    elif (
        family == "native"
        and not has_sizes
        and not deviations(read_native(found.path)[0]).keys() - {"resnet"}
    ):
        import_reference()
        library = "clip-anytorch"
    else:
        import_library("open_clip")
    return Subject(name, library, found.path, subfolder=subfolder)
