"""Batches of pairs by Grain: shuffled, augmented, the same from the same seed on any machine."""

import io
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from clip_jax.sources import Pair, Pairs
from clip_jax.tokenizer import tokenize
from clip_jax.train.augment import AugmentConfig, augment

Batches = Iterator[dict[str, np.ndarray]]

# Columns that texts are trimmed to; fewer than the encoder's, because each is a step to compile,
# which takes longer, and a batch has seldom no text of more than 12 tokens.
TEXT_LENGTHS = (16, 24, 32, 48)


class Skipped:
    """Pictures that could not be read, counted by the threads that read.

    Attributes:
        count: how many were skipped so far.
        seen: how many were tried so far.
        last: the key of the last one and what was wrong with it.
    """

    def __init__(self, max_share: float = 1.0):
        self._max_share = max_share
        self.count = self.seen = 0
        self.last = ""
        self._lock = threading.Lock()

    def add(self, reason: str | None) -> None:
        """Notes one picture, and the reason if it is skipped.

        Raises:
            ValueError: too many are skipped. Raised here, because where none can be read no batch
                will ever be full.
        """
        with self._lock:
            self.seen += 1
            if reason is None:
                return
            self.count += 1
            self.last = reason
            # A few at the start are no share yet.
            if self.count > max(self._max_share * self.seen, 10 if self._max_share else 0):
                raise ValueError(
                    f"{self.count} of {self.seen} pictures can't be read, more than the share of "
                    f"{self._max_share:g} that max_skipped admits; the last one: {reason}"
                )


def batches(
    pairs: Pairs,
    *,
    batch_size: int,
    image_size: int,
    text_length: int,
    augmentation: AugmentConfig | None = None,
    templates: Sequence[str] = ("{}",),
    seed: int = 0,
    process: int = 0,
    num_processes: int = 1,
    num_threads: int = 4,
    max_skipped: float = 1.0,
) -> tuple[Any, Skipped]:
    """An endless iterator over this process's share of batches, and what it has skipped.

    Every pair is seen once an epoch, in another order each time, with one of its captions, one of
    the templates and a new augmentation. Pictures that can't be read are skipped.

    Args:
        pairs: of all processes.
        batch_size: rows of a batch, of this process.
        image_size: pixels a side.
        text_length: columns of tokens; longer captions are cut.
        augmentation: of the pictures; a random square crop where none is given.
        templates: sentences with `{}`, where the caption goes.
        seed: decides everything.
        process: the index of this one.
        num_processes: how many share the pairs.
        num_threads: that read and decode.
        max_skipped: the share of pictures that may be unreadable; the iterator raises ValueError
            when there are more.

    Returns:
        A Grain iterator of {"images": uint8 (b, n, n, 3), "tokens": int32 (b, l)}, whose place
        `get_state` and `set_state` save and restore; and the count of what was skipped.

    Raises:
        ValueError: there are fewer pairs than rows in a batch of all processes, or a template has
            no `{}`.
        ModuleNotFoundError: Grain is not installed.
    """
    try:
        import grain
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "training reads its data with Grain: pip install 'clip-jax-flax[train]'"
        ) from None
    if len(pairs) < batch_size * num_processes:
        raise ValueError(
            f"a batch of {batch_size * num_processes} rows needs as many pairs. Got {len(pairs)}."
        )
    if without := [template for template in templates if "{}" not in template] or not templates:
        raise ValueError(f"a template must have {{}} where the caption goes. Got {without}.")
    config, skipped = augmentation or AugmentConfig(), Skipped(max_skipped)

    def example(pair: Pair | None, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
        if pair is None:
            return None
        caption = pair.captions[int(rng.integers(len(pair.captions)))]
        text = templates[int(rng.integers(len(templates)))].replace("{}", caption)
        try:
            with Image.open(io.BytesIO(pair.image)) as image:
                pixels = augment(image, image_size, config, rng)
        except Exception as error:  # decoders raise whatever they trip over
            skipped.add(f"{pair.key}: {str(error) or type(error).__name__}")
            return None
        skipped.add(None)
        return {"images": pixels, "tokens": tokenize(text, text_length, truncate=True)[0]}

    dataset = grain.MapDataset.source(_Readable(pairs, skipped)).seed(seed).shuffle()
    dataset = dataset[process::num_processes].repeat().random_map(example)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * batch_size)
    # What is None is left out here, so that every batch is full.
    return iter(dataset.to_iter_dataset(options).batch(batch_size, drop_remainder=True)), skipped


def trim_tokens(tokens: Int[np.ndarray, "b l"]) -> Int[np.ndarray, "b k"]:
    """Tokens without the columns that no text of the batch reaches.

    What comes after the end token is seen by no token before it, so a step's loss and gradients are
    the same; the text tower computes less.

    Args:
        tokens: as `clip_jax.tokenize` makes them, zeros after the end token.

    Returns:
        The first 16, 24, 32 or 48 columns, the fewest that hold all texts; else all.
    """
    used = np.flatnonzero(tokens.any(axis=0))
    longest = int(used[-1]) + 1 if used.size else 1
    return tokens[:, : next((n for n in TEXT_LENGTHS if n >= longest), None)]


class _Readable:
    """Pairs whose files may have gone: None for those."""

    def __init__(self, pairs: Pairs, skipped: Skipped):
        self._pairs, self._skipped = pairs, skipped

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair | None:
        try:
            return self._pairs[index]
        except OSError as error:
            self._skipped.add(str(error))
            return None
