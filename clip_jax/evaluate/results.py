"""What evaluations return: their figures, and what they had to leave out."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.evaluate.c_sweep import Sweep
from clip_jax.evaluate.linear_probe import LinearProbe
from clip_jax.evaluate.provenance import Provenance
from clip_jax.evaluate.retrieval_mistakes import RetrievalMistake
from clip_jax.evaluate.scores import Scores


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Rows that are not part of an evaluation.

    Attributes:
        problems: the rows that could not be used, each with the reason.
        missing: how many rows of an embedding job have not been embedded yet.
        unknown: how many input files of an embedding job have no embedded rows at all; how many
            rows they hold is not known.
    """

    problems: Sequence[str] = ()
    missing: int = 0
    unknown: int = 0

    def __bool__(self) -> bool:
        return bool(self.problems or self.missing or self.unknown)

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(
            [*self.problems, *other.problems],
            self.missing + other.missing,
            self.unknown + other.unknown,
        )


@dataclasses.dataclass(frozen=True)
class ClassificationResult:
    """How well images were classified.

    Attributes:
        scores: the figures.
        class_names: (k) names of the classes.
        targets: (n,) the class of each image, as an index into `class_names`; of several right
            ones, the one that has the highest logit.
        keys: (n) names of the images within their source.
        paths: (n) paths of the images; None for those that have none, such as members of archives.
        left_out: images that could not be used.
        provenance: where the figures come from; None if that isn't known.
    """

    scores: Scores
    class_names: Sequence[str]
    targets: Int[np.ndarray, " n"]
    keys: Sequence[str]
    paths: Sequence[str | None]
    left_out: LeftOut
    provenance: Provenance | None = dataclasses.field(default=None, kw_only=True)

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy of each class that has images, from 0 to 1, by the name of the class.

        Classes of the same name have their number after it.
        """
        rows, right = self.scores.confusion.sum(axis=1), self.scores.confusion.diagonal()
        counts = collections.Counter(self.class_names)
        return {
            f"{name} ({i})" if counts[name] > 1 else name: float(right[i] / rows[i])
            for i, name in enumerate(self.class_names)
            if rows[i]
        }


@dataclasses.dataclass(frozen=True)
class ZeroShotResult(ClassificationResult):
    """How well the names of the classes alone classify images.

    Attributes:
        templates: the sentences that were put around the names.
    """

    templates: Sequence[str]


@dataclasses.dataclass(frozen=True)
class ProbeResult(ClassificationResult):
    """How well a linear classifier of a model's features does on images it was not fitted to.

    Attributes:
        probe: the fitted classifier; `probe.C` is the strength that was used.
        num_fitted: images that it was fitted to.
        sweep: the search for C; None where C was given.
    """

    probe: LinearProbe
    num_fitted: int
    sweep: Sweep | None


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """How well images and their captions find each other.

    Attributes:
        num_images: images.
        num_texts: captions.
        recalls: as `recall_at_k` returns them.
        left_out: images that could not be used.
        ranks: (i,) the place of each image's best caption among all captions, from 1, as
            "image_to_text"; (t,) of each caption's image as "text_to_image".
        mistakes: the worst of each direction, of which there may be more.
        pairs: (t,) the image of each caption, as an index.
        keys: (i) names of the images within their source.
        paths: (i) paths of the images; None for those that have none.
        captions: (t) the captions.
        provenance: where the figures come from.
        read: reads the file of an image without a path, given its index; None if there is no such.
    """

    num_images: int
    num_texts: int
    recalls: dict[str, dict[int, float]]
    left_out: LeftOut
    # Results are the same if their figures are; arrays have no truth value.
    ranks: dict[str, Int[np.ndarray, " n"]] = dataclasses.field(compare=False)
    mistakes: dict[str, list[RetrievalMistake]]
    pairs: Int[np.ndarray, " t"] = dataclasses.field(compare=False)
    keys: Sequence[str] = dataclasses.field(repr=False)
    paths: Sequence[str | None] = dataclasses.field(repr=False)
    captions: Sequence[str] = dataclasses.field(repr=False)
    provenance: Provenance | None = dataclasses.field(default=None, compare=False)
    read: Callable[[int], bytes] | None = dataclasses.field(default=None, compare=False, repr=False)
