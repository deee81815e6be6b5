"""Compares a model in JAX and in PyTorch on the same pictures and captions, stage by stage."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np
from jax import Array
from jaxtyping import Int
from PIL import Image

from clip_jax.config import TextConfig
from clip_jax.model_tokenizer import Tokenizer
from clip_jax.nn import CLIP
from clip_jax.nn.clip import computing
from clip_jax.parity.inputs import CAPTIONS, pictures
from clip_jax.parity.peer import Peer
from clip_jax.preprocess import Preprocess
from clip_jax.sentence_piece import AnyTokenizer
from clip_jax.tokenizer import tokenize
from clip_jax.towers import TextModel, VisionModel

Model = CLIP | TextModel | VisionModel
Measure = Literal["absolute", "relative"]

# Tolerances with their measures. Both sides compute in float32 but add in different orders: 1e-5
# leaves room for that in the deepest tower, and for nothing else. Logits are cosines times 100.
# Stages without floating-point sums must be identical.
EXACT: tuple[float, Measure] = (0.0, "absolute")
HIDDEN: tuple[float, Measure] = (1e-5, "relative")
FEATURES: tuple[float, Measure] = (1e-5, "relative")
LOGITS: tuple[float, Measure] = (1e-3, "absolute")


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage's difference between the two sides, over all pictures or captions.

    Attributes:
        stage: "preprocessing", "tokens", "image ..." or "text ..." with the module's name in
            official checkpoints, or "logits".
        max_abs: the largest absolute difference of any element.
        rel: L2 norm of the difference over the L2 norm of PyTorch's values.
        tolerance: the largest permitted value of `measure`.
        measure: which of the two differences is tested.
    """

    stage: str
    max_abs: float
    rel: float
    tolerance: float
    measure: Measure

    @property
    def ok(self) -> bool:
        """Whether the difference is within tolerance; NaN never is."""
        return (self.max_abs if self.measure == "absolute" else self.rel) <= self.tolerance


def compare(
    model: Model,
    preprocess: Preprocess | None,
    reference: Peer,
    images: Sequence[Image.Image] | None = None,
    texts: Sequence[str] = CAPTIONS,
    tokenizer: AnyTokenizer | None = None,
) -> list[Row]:
    """Runs both sides and measures every stage's difference, in the order of computation.

    Each side preprocesses the pictures and captions itself, so the first row that is not `ok` is
    where the two diverge. If the model's vocabulary is smaller than the tokenizer's, both sides
    use ids mapped into its range, with a warning; if its tokenizer isn't at hand, the row "tokens"
    is left out.

    Args:
        model: our model, in float32; a whole one, or one tower.
        preprocess: its preprocessing, from `clip_jax.load`; None for a text tower.
        reference: the same checkpoint in PyTorch, from `load_reference` or `Subject.load_peer`.
        images: pictures of any modes and sizes; by default `pictures()`.
        texts: captions of any length.
        tokenizer: the model's tokenizer, from `clip_jax.load_tokenizer`; OpenAI's by default.

    Raises:
        ValueError: the two sides are not the same architecture.
    """
    inputs, stages, pixels, tokens = [], [], None, None
    if not isinstance(model, TextModel):
        assert preprocess is not None, "images need preprocessing"
        images = pictures() if images is None else images
        pixels = np.stack([preprocess(image) for image in images]), reference.pixels(images)
        inputs.append(_Difference.of("preprocessing", *pixels).row("preprocessing", *EXACT))
        # Picture by picture, because the hidden states of a large tower fill gigabytes.
        by_picture = [
            _differences(_image_stages(model, ours), theirs, reference.image_stages)
            for ours, theirs in zip(pixels[0][:, None], pixels[1][:, None], strict=True)
        ]
        stages += _rows("image", _summed(by_picture))
    if not isinstance(model, VisionModel):
        *tokens, rows = _tokens(model.text_config, reference, texts, tokenizer)
        inputs += rows
        differences = _differences(_text_stages(model, tokens[0]), tokens[1], reference.text_stages)
        stages += _rows("text", differences)
    if isinstance(model, CLIP) and pixels and tokens:
        logits = np.asarray(model(pixels[0], tokens[0])[0])
        theirs = reference.logits(pixels[1], tokens[1])
        stages.append(_Difference.of("logits", logits, theirs).row("logits", *LOGITS))
    return [*inputs, *stages]


def first_difference(rows: Iterable[Row]) -> Row | None:
    """Returns the first stage beyond its tolerance; None if there is none."""
    return next((row for row in rows if not row.ok), None)


@dataclasses.dataclass(frozen=True)
class _Difference:
    """A stage's difference on some batches; a sum covers all of them."""

    max_abs: float
    squares: float
    their_squares: float

    @classmethod
    def of(cls, stage: str, ours: np.ndarray, theirs: np.ndarray) -> "_Difference":
        _check_shape(stage, ours, theirs)
        difference = np.asarray(ours, np.float64) - theirs
        return cls(
            float(np.abs(difference).max()),
            float(np.square(difference).sum()),
            float(np.square(theirs, dtype=np.float64).sum()),
        )

    def __add__(self, other: "_Difference") -> "_Difference":
        return _Difference(
            float(np.maximum(self.max_abs, other.max_abs)),  # unlike max, keeps NaN
            self.squares + other.squares,
            self.their_squares + other.their_squares,
        )

    def row(self, stage: str, tolerance: float, measure: Measure) -> Row:
        if self.squares == 0:
            rel = 0.0
        else:
            rel = math.sqrt(self.squares / self.their_squares) if self.their_squares else math.inf
        return Row(stage, self.max_abs, rel, tolerance, measure)


def _differences(
    ours: Mapping[str, Array],
    their_input: np.ndarray,
    their_stages: Callable[[np.ndarray, Iterable[str]], dict[str, np.ndarray]],
) -> dict[str, _Difference]:
    # jit sorts the names; PyTorch's are in the order of computation.
    theirs = their_stages(their_input, ours)
    return {name: _Difference.of(name, np.asarray(ours[name]), x) for name, x in theirs.items()}


def _tokens(
    config: TextConfig,
    reference: Peer,
    texts: Sequence[str],
    tokenizer: AnyTokenizer | None,
) -> tuple[np.ndarray, np.ndarray, list[Row]]:
    """Returns both sides' token ids, and their row if both sides have a tokenizer."""
    length, rows = config.context_length, []
    ours = tokenizer or Tokenizer(length)
    their_tokens = None if ours.missing else reference.tokens(texts, length)
    if their_tokens is None:
        tokens = their_tokens = tokenize(texts, length, truncate=True)
    else:
        tokens = ours(texts, truncate=True)
        rows = [_Difference.of("tokens", tokens, their_tokens).row("tokens", *EXACT)]
    if (most := max(tokens.max(), their_tokens.max())) >= config.vocab_size or ours.missing:
        why = "too few for" if most >= config.vocab_size else "others than"
        warnings.warn(
            f"the model's vocabulary has {config.vocab_size:,} ids, {why} those of the captions: "
            f"both sides compute on ids brought into its range",
            stacklevel=3,
        )
        tokens, their_tokens = (_within(ids, config) for ids in (tokens, their_tokens))
    return tokens, their_tokens, rows


def _within(tokens: Int[np.ndarray, "b l"], config: TextConfig) -> Int[np.ndarray, "b l"]:
    """Maps ids into the vocabulary; a row's largest becomes the end token."""
    last = config.vocab_size - 1
    end = last if config.pooling != "eos" or config.eos_id is None else config.eos_id
    is_end = tokens == tokens.max(axis=1, keepdims=True)
    return np.where(is_end, end, tokens % max(last, 1))


def _summed(batches: Sequence[Mapping[str, _Difference]]) -> dict[str, _Difference]:
    total = dict(batches[0])
    for batch in batches[1:]:
        total = {name: total[name] + difference for name, difference in batch.items()}
    return total


def _rows(tower: str, differences: Mapping[str, _Difference]) -> list[Row]:
    return [
        difference.row(f"{tower} {name}", *(FEATURES if name == "features" else HIDDEN))
        for name, difference in differences.items()
    ]


@jax.jit
def _image_stages(model: CLIP | VisionModel, images: Array) -> dict[str, Array]:
    stages: dict[str, Array] = {}
    with computing(model.precision):
        stages["features"] = model.visual(images, stages.__setitem__)
    return stages


@jax.jit
def _text_stages(model: CLIP | TextModel, tokens: Array) -> dict[str, Array]:
    stages: dict[str, Array] = {}
    with computing(model.precision):
        features = model.text_features(tokens, model.dtype, stages.__setitem__)
        if isinstance(model, TextModel):  # whose use is the hidden state of every position
            last = f"transformer.resblocks.{model.text_config.num_layers - 1}"
            stages["ln_final"] = model.ln_final(stages[last])
    return {**stages, "features": features}


def _check_shape(stage: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{stage}: JAX gives shape {ours.shape}, PyTorch {theirs.shape}: not the same "
            f"architecture"
        )
