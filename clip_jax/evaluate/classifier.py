"""Zero-shot classification by the names of the classes (Radford et al. 2021, section 3.1)."""

import collections
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from clip_jax.config import SigLIPConfig
from clip_jax.encoder import Encoder
from clip_jax.errors import NotFiniteError
from clip_jax.evaluate.labels import as_labels
from clip_jax.evaluate.scores import sigmoid
from clip_jax.inputs import as_tokens
from clip_jax.messages import counted, some
from clip_jax.nn import CLIP, model_digest
from clip_jax.nn.clip import check_model
from clip_jax.nn.text import pooled_positions
from clip_jax.tokenizer import tokenize

TEMPLATES = ("a photo of a {}.",)
# Up to so many prompts are embedded each time, by one program of `model.encode_text`. More prompts
# may take minutes on a CPU: their embeddings are kept, and found again by the digest of the model's
# weights, which would take longer to compute than a few prompts.
FEW = 64
# Sets of class embeddings that this process keeps.
KEPT = 8
# Image embeddings that are compared with all classes at one time.
ROWS = 8192


class ZeroShotClassifier:
    """A classifier of images that needs no training, only the names of the classes.

    A prompt is a template with a class's name in it. A class's embedding is the normalised mean of
    its prompts' normalised embeddings. A logit is the cosine of an image with a class, times the
    model's logit scale, plus its bias if it has one. Cosines are computed in float64.

    Example:
        >>> import clip_jax
        >>> from PIL import Image
        >>> model, preprocess = clip_jax.load("emoji")
        >>> classifier = ZeroShotClassifier(model, ["dog", "cat"], ["a photo of a {}."])
        >>> pixels = preprocess.pixels(Image.new("RGB", (64, 64), "red"))
        >>> classifier.probabilities(pixels[None]).shape
        (1, 2)

    Attributes:
        class_names: the names of the classes.
        templates: the sentences around the names.
        weights: (k, d) float64, the normalised embeddings of the classes.
        is_independent: whether each class has a probability of its own, as in SigLIP, instead of a
            share of 1.
    """

    def __init__(
        self,
        model: CLIP,
        class_names: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        *,
        batch_size: int | None = None,
        tokenizer: Callable[[Sequence[str]], np.ndarray] | None = None,
    ):
        """Embeds the prompts. Many are kept for the next classifier of the same model and prompts.

        Args:
            model: any CLIP model; later changes of its parameters have no effect.
            class_names: at least one; the classes are numbered in their order.
            templates: sentences with `{}` where the name goes.
            batch_size: of images and of prompts, as for `Encoder`.
            tokenizer: what turns prompts into token ids, such as `load_tokenizer` gives; by default
                CLIP's own.

        Raises:
            ValueError: a name is blank, a template has no `{}`, a prompt is too long for the model,
                or the weights are damaged.
            TypeError: a name or a template is not a string; or it is no model.

        Warns:
            UserWarning: classes have the same name, as two pairs of ImageNet's published 1,000
                have. Their scores are equal, so that the first is predicted for both. Or there is
                one class only, which has all of the softmax.
        """
        check_model(model)
        self.class_names, self.templates = check_prompts(class_names, templates)
        self.is_independent = isinstance(model.config, SigLIPConfig)
        self._encoder = Encoder(model, batch_size=batch_size)
        self._scale, self._bias = _logit_scale(model), _logit_bias(model)
        if tokenizer is None:
            model.config.text.check_strings()
        self._tokenizer = tokenizer
        if twice := self._alike(model.config.text.context_length):
            warnings.warn(
                f"several classes are called {some(twice)}: their scores are equal, and the first "
                f"of them is predicted",
                stacklevel=2,
            )
        self.weights = self._class_embeddings(model)
        if len(self.class_names) == 1 and not self.is_independent:
            warnings.warn(
                "one class alone always has 100%: give others too, that it is compared with",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        counts = counted(len(self.class_names), "name"), counted(len(self.templates), "template")
        return f"ZeroShotClassifier({', '.join(counts)}, {self._encoder!r})"

    def _class_embeddings(self, model: CLIP) -> Float[np.ndarray, "k d"]:
        names, templates = self.class_names, self.templates
        text = model.config.text
        if len(names) * len(templates) <= FEW:
            tokens = self._tokens(text.context_length, names, templates)
            as_tokens(
                tokens, text
            )  # before they are cut, and the end of a text isn't seen any more
            longest = text.context_length
            if text.can_be_cut:
                longest = np.max(pooled_positions(tokens, text)) + 1
            return _class_means(np.asarray(model.encode_text(tokens[:, :longest])), len(names))
        compute = f"{model.dtype} {model.precision}"
        key = (model_digest(model), compute, names, templates, self._tokenizer)
        if key not in _kept:
            tokens = self._tokens(text.context_length, names, templates)
            _kept[key] = _class_means(self._encoder.texts(tokens), len(names))
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        return _kept[key]

    def _alike(self, context_length: int) -> list[str]:
        """Returns the names that are the same to the tokenizer, in quotes: those of two classes."""
        spelled: dict[str, list[str]] = collections.defaultdict(list)
        for name in self.class_names:
            spelled[" ".join(name.casefold().split())].append(name)
        likely = [name for names in spelled.values() if len(names) > 1 for name in names]
        named: dict[bytes, list[str]] = collections.defaultdict(list)
        for name in likely:  # the others needn't be tokenized if their embeddings are kept
            tokens = self._tokens(context_length, [name], self.templates[:1])
            named[tokens.tobytes()].append(name)
        alike = [dict.fromkeys(names) for names in named.values() if len(names) > 1]
        return [" and ".join(map(repr, names)) for names in alike]

    def _tokens(
        self, context_length: int, names: Sequence[str], templates: Sequence[str]
    ) -> Int[np.ndarray, "p l"]:
        """Returns the prompts of the first class, then those of the second, and so on."""
        prompts = [template.replace("{}", name) for name in names for template in templates]
        if self._tokenizer is None:
            return tokenize(prompts, context_length)
        return self._tokenizer(prompts)

    def logits(self, embeddings: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b k"]:
        """Returns the scaled cosines of image embeddings with the classes, plus any bias.

        Args:
            embeddings: (b, d), normalised or not.

        Returns:
            (b, k) float64.

        Raises:
            ValueError: the embeddings have another width.
        """
        embeddings = np.asarray(embeddings)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weights.shape[1]:
            raise ValueError(
                f"embeddings must have the shape (rows, {self.weights.shape[1]}). "
                f"Got {embeddings.shape}."
            )
        parts = [np.empty((0, len(self.weights)))]
        with jax.enable_x64(True), jax.default_matmul_precision("highest"):
            for begin in range(0, len(embeddings), ROWS):
                rows = embeddings[begin : begin + ROWS]
                parts.append(np.asarray(_logits(rows, self.weights, self._scale)))
        return np.concatenate(parts) + self._bias

    def probabilities(self, images: np.ndarray | Array) -> Float[np.ndarray, "b k"]:
        """Returns the probability of each class: the softmax of the logits, or SigLIP's sigmoid.

        Args:
            images: (b, n, n, 3) uint8 pixels or normalised floats, as for `model.encode_image`; b
                may be any number.

        Returns:
            (b, k) float32; each row has the sum 1, unless each class has a probability of its own.

        Raises:
            ValueError: the shape or the dtype is wrong, or an image or its embedding is not finite.
        """
        logits = self.logits(self._encoder.images(images))
        if self.is_independent:
            return sigmoid(logits).astype(np.float32)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def predict(self, images: np.ndarray | Array) -> Int[np.ndarray, " b"]:
        """Returns the index of each image's most probable class; raises as `probabilities`."""
        return self.logits(self._encoder.images(images)).argmax(axis=1)

    def top_k(
        self, images: np.ndarray | Array, k: int = 5
    ) -> tuple[Float[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """Returns the probabilities and the indices of the k most probable classes, best first.

        Raises:
            ValueError: as `probabilities`; or k is not from 1 to the number of classes.
        """
        if not 1 <= k <= len(self.class_names):
            raise ValueError(f"k must be from 1 to {len(self.class_names)}. Got {k}.")
        probabilities = self.probabilities(images)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(probabilities, best, axis=1), best


_kept: collections.OrderedDict[tuple, Float[np.ndarray, "k d"]] = collections.OrderedDict()


def check_prompts(
    class_names: Sequence[str], templates: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns class names and templates as tuples.

    Raises:
        ValueError: a name is blank, or a template has no `{}`.
        TypeError: one is not a string.
    """
    for what, texts in (("class_names", class_names), ("templates", templates)):
        if isinstance(texts, str | Mapping) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{what} must be a sequence of strings. Got {texts!r}.")
        if not len(texts):
            raise ValueError(f"{what} must not be empty.")
    names, templates = tuple(class_names), tuple(templates)
    if lists := [name for name in names if len(as_labels(name)) > 1]:
        raise ValueError(f"a class name must be one name. Got a list of them as text: {lists[0]}")
    if not all(name.strip() for name in names):
        raise ValueError(f"class names must not be blank. Got {names!r}.")
    if bad := [template for template in templates if "{}" not in template]:
        raise ValueError(
            "a template must have {} where the name goes, such as 'a photo of a {}.'. "
            f"Got {bad[0]!r}."
        )
    return names, templates


def _logit_scale(model: CLIP) -> float:
    with np.errstate(over="ignore"):
        scale = float(np.exp(np.float64(model.logit_scale[...])))
    if not np.isfinite(scale):
        raise ValueError(
            f"the model's logit scale is not finite (its logarithm is {model.logit_scale[...]}): "
            "the weights are damaged, get them again"
        )
    return scale


def _logit_bias(model: CLIP) -> float:
    if model.config.logit_bias is None:
        return 0.0
    bias = float(model.logit_bias[...])
    if not np.isfinite(bias):
        raise ValueError(
            f"the model's logit bias is not finite ({bias}): its weights are damaged, get them "
            "again"
        )
    return bias


def _class_means(prompts: Float[np.ndarray, "p d"], num_classes: int) -> Float[np.ndarray, "k d"]:
    with np.errstate(invalid="ignore"):  # 0 / 0, which the check finds
        prompts = _unit(prompts.astype(np.float64))
    if len(bad := np.flatnonzero(~np.isfinite(prompts).all(axis=1))):
        raise NotFiniteError(
            f"the embeddings of prompts {some(bad)} are zero or not finite: the weights are "
            "damaged, get them again",
            bad.tolist(),
        )
    weights = _unit(prompts.reshape(num_classes, -1, prompts.shape[1]).mean(axis=1))
    weights.flags.writeable = False  # shared by all classifiers of these prompts
    return weights


def _unit(x: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@jax.jit
def _logits(
    embeddings: Float[Array, "b d"], weights: Float[Array, "k d"], scale: Float[Array, ""]
) -> Float[Array, "b k"]:
    embeddings = embeddings.astype(jnp.float64)
    norms = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    return scale * (embeddings / norms) @ weights.T
