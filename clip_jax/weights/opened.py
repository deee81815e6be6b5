"""A model for a job: given, or loaded by name with the pixels and the ids that it needs."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax.config import Activation, CLIPConfig, NumHeads
from clip_jax.errors import CheckpointError
from clip_jax.image_size import ImageSize
from clip_jax.inputs import check_ends
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.nn import CLIP
from clip_jax.preprocess import Preprocess
from clip_jax.sentence_piece import AnyTokenizer, SentencePieceTokenizer
from clip_jax.tokenizer import tokenize
from clip_jax.weights.finding import find
from clip_jax.weights.loader import load
from clip_jax.weights.positions import PositionResize
from clip_jax.weights.tokenizers import Preprocessing, load_tokenizer

Model = CLIP | str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How a model that is given by name or path is to be loaded; the arguments of `load`.

    Attributes:
        activation: the activation of a bare file.
        num_heads: the attention heads of a bare file.
        preprocessing: whose pixels and ids.
        image_size: another size of the images than the model's own.
        position_resize: how positions are resized for it.
        drop_remainder: whether it may be no multiple of the patches' size.
    """

    activation: Activation | None = None
    num_heads: NumHeads | None = None
    preprocessing: Preprocessing = "openai"
    image_size: ImageSize | None = None
    position_resize: PositionResize | None = None
    drop_remainder: bool = False

    def given(self) -> dict[str, Any]:
        """Returns those that are not the defaults, as plain JSON."""
        fields = dataclasses.asdict(self)
        given = {name: v for name, v in fields.items() if v != _VALUES[name]}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}

    @classmethod
    def of(cls, given: Any) -> "LoadOptions":
        """Returns the options that `given` returned; the defaults for what is none."""
        known = {} if not isinstance(given, dict) else {n: given[n] for n in given if n in _VALUES}
        for name in ("num_heads", "image_size"):
            if isinstance(known.get(name), list):
                known[name] = tuple(known[name])
        return cls(**known)


DEFAULTS = LoadOptions()
_VALUES = dataclasses.asdict(DEFAULTS)


@dataclasses.dataclass(frozen=True)
class Configured:
    """A model's configuration in the place of the model, where nothing is computed."""

    config: CLIPConfig


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model with what turns pictures and strings into its inputs.

    Attributes:
        model: the model; in other processes, which don't compute, its configuration.
        preprocess: the preprocessing of its images.
        tokenizer: its own tokenizer, where that makes other ids than CLIP's; None for CLIP's.
    """

    model: CLIP
    preprocess: Preprocess
    tokenizer: AnyTokenizer | None = None

    def check_strings(self) -> None:
        """Checks that strings can be turned into the model's ids.

        Raises:
            ValueError: the tokenizer that makes them isn't at hand.
        """
        if self.tokenizer is None:
            self.model.config.text.check_strings()
        else:
            self.tokenizer("")

    def check_ends(self) -> None:
        """Checks that a traced function, such as a step of training, can tell where a text ends.

        Raises:
            ValueError: texts may have added tokens, and nothing says that these aren't the end.
        """
        if self.tokenizer is not None:
            check_ends(self.tokenizer.vocab_size, self.model.config.text)

    def tokens(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns the ids of texts, (b, l) int32; those that are too long are cut.

        Raises:
            ValueError: the tokenizer has added a token for which the model has no embedding.
        """
        text = self.model.config.text
        if self.tokenizer is None:
            return tokenize(texts, text.context_length, truncate=True)
        tokens = self.tokenizer(texts, truncate=True)
        if tokens.size and tokens.max() >= text.vocab_size:
            raise ValueError(
                f"the tokenizer gives the id {tokens.max()}, of a token that was added to it, but "
                f"the model has embeddings of {text.vocab_size:,} ids: give the model that was "
                f"trained with it"
            )
        return tokens

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """The files of a tokenizer that is saved with its model; none for CLIP's own."""
        return {} if self.tokenizer is None else self.tokenizer.files()

    @property
    def own_ids(self) -> dict[str, Any] | None:
        """What distinguishes the tokenizer's ids from those of CLIP's, as plain JSON."""
        own = self.tokenizer
        if own is None:
            return None
        if isinstance(own, SentencePieceTokenizer):
            return {"sha256": own.digest}
        return {"rules": own.rules, "added": [[token.text, token.id] for token in own.added]}


def open_model(
    model: Model,
    options: LoadOptions,
    load: Callable[..., tuple[CLIP, Preprocess]] = load,
    **how: Any,
) -> Opened:
    """Returns a model with its preprocessing and its tokenizer.

    Args:
        model: a model; or what `clip_jax.load` takes.
        options: for a model by name or path.
        load: what loads it.
        **how: further arguments of `clip_jax.load`.

    Raises:
        ValueError: options are given for a model that is loaded already; and as `clip_jax.load`.
        CheckpointError: as `clip_jax.load`.
        DownloadError: as `clip_jax.load`.
    """
    if isinstance(model, CLIP):
        if given := options.given():
            raise ValueError(
                f"{', '.join(given)}: for models by name or path; this one is loaded already."
            )
        return Opened(model, Preprocess(model.config.vision.image_size, model.config.pixels))
    found, preprocess = load(model, **how, **_told(options))
    return Opened(found, preprocess, own_tokenizer(model, options.preprocessing))


def own_tokenizer(
    name_or_path: str | os.PathLike[str], preprocessing: Preprocessing = "openai"
) -> AnyTokenizer | None:
    """Returns a model's tokenizer if it makes other ids than CLIP's own; else None.

    That is one with added tokens, with transformers' cleaning of texts, or SigLIP's.
    """
    found = find(name_or_path)
    if found.path.is_file():  # it says nothing of its tokenizer
        return None
    # The very folder that the model is from, also without a network.
    source = name_or_path if found.document else found.path
    try:
        tokenizer = load_tokenizer(source, preprocessing=preprocessing)
    except CheckpointError:  # `load` has noted in the configuration that it isn't CLIP's
        return None
    except ModuleNotFoundError as error:  # pictures need none
        return Tokenizer(missing=f"of SigLIP ({error})")
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer
    differs = tokenizer.added or tokenizer.missing or tokenizer.rules == "huggingface"
    return tokenizer if differs else None


def _told(options: LoadOptions) -> dict[str, Any]:
    """Returns the arguments of `load` that are not the defaults."""
    return {name: getattr(options, name) for name in options.given()}
