"""Zero-shot classification: the classes are told by their names (Radford et al. 2021, section 3.1).

What is computed once for a model and its prompts is kept: the embeddings of thousands of prompts
take minutes on a CPU.
"""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from clip_jax.encoder import Encoder
from clip_jax.messages import some
from clip_jax.nn import CLIP, model_digest
from clip_jax.tokenizer import tokenize

TEMPLATES = ("a photo of a {}.",)
# Classifiers whose weights are kept, in this process.
KEPT = 8
# Embeddings that are compared with all classes at one time.
ROWS = 8192


class ZeroShotClassifier:
    """A classifier of images made of the names of the classes.

    Each prompt's embedding is normalised, the mean of a class's prompts is normalised again, and
    the logits are the model's scaled cosines with these. Cosines are computed in float64.

    Example:
        >>> classifier = ZeroShotClassifier(model, ["dog", "cat"])  # doctest: +SKIP
        >>> classifier.class_names[classifier.predict(images)[0]]  # doctest: +SKIP
        'cat'

    Attributes:
        class_names: of the classes, in the order of the numbers that `predict` gives.
        templates: of the prompts.
        weights: (k, d) the classes' embeddings, normalised; float64.
    """

    def __init__(
        self,
        model: CLIP,
        class_names: Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        *,
        batch_size: int | None = None,
    ):
        """Embeds the prompts, unless this process has done so before.

        Args:
            model: any CLIP model; its parameters as they are now.
            class_names: at least one, all different.
            templates: sentences with `{}` where the name goes.
            batch_size: of images and of prompts, as `Encoder` has it.

        Raises:
            ValueError: a name is blank or given twice, a template has no `{}`, or a prompt is too
                long for the model.
            TypeError: a name or a template is no string.
        """
        self.class_names, self.templates = check_prompts(class_names, templates)
        self._encoder = Encoder(model, batch_size=batch_size)
        self._scale = float(np.exp(np.float64(model.logit_scale[...])))
        compute = f"{model.dtype} {model.precision}"
        key = (model_digest(model), compute, self.class_names, self.templates)
        if key not in _kept:
            tokens = _tokens(self.class_names, self.templates, model.config.text.context_length)
            _kept[key] = _class_embeddings(self._encoder.texts(tokens), len(self.class_names))
            while len(_kept) > KEPT:
                _kept.popitem(last=False)
        self.weights = _kept[key]

    def logits(self, embeddings: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b k"]:
        """The scaled cosines of image embeddings, normalised or not, with the classes; float64.

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
        return np.concatenate(parts)

    def probabilities(self, images: np.ndarray | Array) -> Float[np.ndarray, "b k"]:
        """The softmax of the logits.

        Args:
            images: (b, n, n, 3), uint8 pixels or normalised floats, as for `model.encode_image`;
                any number of them.

        Returns:
            (b, k) float32, a row of the sum 1 for each image.

        Raises:
            ValueError: the shape or the dtype is another, or an image is not finite.
        """
        logits = self.logits(self._encoder.images(images))
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

    def predict(self, images: np.ndarray | Array) -> Int[np.ndarray, " b"]:
        """(b,) numbers of the most probable classes, counted from 0; raises as `probabilities`."""
        return self.logits(self._encoder.images(images)).argmax(axis=1)

    def top_k(
        self, images: np.ndarray | Array, k: int = 5
    ) -> tuple[Float[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """The probabilities and the numbers of the k most probable classes, best first.

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
    """Names and templates as tuples.

    Raises:
        ValueError: as `ZeroShotClassifier`.
        TypeError: likewise.
    """
    for what, texts in (("class_names", class_names), ("templates", templates)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{what} must be a sequence of strings. Got {texts!r}.")
        if not len(texts):
            raise ValueError(f"{what} must not be empty.")
    names, templates = tuple(class_names), tuple(templates)
    if not all(name.strip() for name in names):
        raise ValueError(f"class names must not be blank. Got {names!r}.")
    counts = collections.Counter(names)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"class names must differ. Given more than once: {some(map(repr, twice))}."
        )
    if bad := [template for template in templates if "{}" not in template]:
        raise ValueError(
            "a template must have {} where the name goes, such as 'a photo of a {}.'. "
            f"Got {bad[0]!r}."
        )
    return names, templates


def _tokens(
    names: Sequence[str], templates: Sequence[str], context_length: int
) -> Int[np.ndarray, "p l"]:
    """All prompts, those of a class together."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    return tokenize(prompts, context_length)


def _class_embeddings(
    prompts: Float[np.ndarray, "p d"], num_classes: int
) -> Float[np.ndarray, "k d"]:
    prompts = _unit(prompts.astype(np.float64))
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
