"""Batches of pairs with Grain: shuffled and augmented, deterministic in the seed."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from clip_jax.channels import CLIPPED, FRAMES, REAL, Losses, has_frames, is_clipped, is_real
from clip_jax.errors import Unreachable, is_exhausted
from clip_jax.naming import reading
from clip_jax.preprocess import Fit, decode_image
from clip_jax.sources import Pair, Pairs
from clip_jax.tokenizer import tokenize
from clip_jax.train.augment import AugmentConfig, augment
from clip_jax.train.order import Spread, groups_of

Batches = Iterator[dict[str, np.ndarray]]

# Lengths that texts are trimmed to; fewer than the encoder's, because each combination of them
# compiles another training step, which takes longer.
TEXT_LENGTHS = (16, 24, 32, 48)
# The most pixels of a resized picture before it is cropped, or before its other side is resized;
# only long, thin pictures have more.
MOST_PIXELS = 1 << 26
# How many of the unreadable pictures a run names; the others are only counted.
NAMED = 20


class Skipped:
    """A count of unreadable pictures, made by the threads that read.

    As these read ahead, the positions in a step's batch tell how many that step has skipped.

    Attributes:
        count: how many were skipped so far.
        seen: how many were tried so far.
        last: the key of the last skipped one, and its problem.
        losses: the pictures of the first epoch that have lost something on their way to pixels.
    """

    def __init__(self, max_share: float = 1.0, num_pairs: int = 1 << 62):
        self._max_share, self._num_pairs = max_share, num_pairs
        self.count = self.seen = 0
        self.last = ""
        self.losses = Losses()
        self._named: dict[str, bool] = {}  # reasons, and whether they have been told
        self._lock = threading.Lock()

    def lost(self, kinds: Sequence[str], key: str) -> None:
        """Counts what a picture loses, unless it has been seen in an epoch before."""
        if self.seen < self._num_pairs:
            self.losses.add(kinds, key)

    def new(self) -> list[str]:
        """Returns the reasons that it hasn't returned before: at most `NAMED` of all of them."""
        with self._lock:
            found = [reason for reason, is_told in self._named.items() if not is_told]
            self._named |= dict.fromkeys(found, True)
            return found

    def add(self, reason: str | None) -> None:
        """Counts one picture, and the reason if it is skipped.

        Raises:
            ValueError: too many are skipped. Raised here, as without readable pictures no batch
                would ever be full.
        """
        with self._lock:
            self.seen += 1
            if reason is None:
                return
            self.count += 1
            self.last = reason
            if len(self._named) < NAMED:
                self._named.setdefault(reason, False)
            if self.count == self.seen >= self._num_pairs:
                raise ValueError(f"none of the pictures can be read; the last one: {reason}")
            # A few at the start are no meaningful fraction yet.
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
    spread: bool = False,
    seed: int = 0,
    process: int = 0,
    num_processes: int = 1,
    num_threads: int = 4,
    max_skipped: float = 1.0,
    tokenizer: Callable[..., np.ndarray] | None = None,
) -> tuple[Any, Skipped]:
    """Returns an endless iterator over this process's batches, and its count of skipped pairs.

    Every pair is seen once per epoch, each time in another order, with one of its captions, one of
    the templates and a new augmentation. Unreadable pictures are skipped.

    Args:
        pairs: the pairs of all processes.
        batch_size: rows of a batch of this process.
        image_size: side of the pictures in pixels.
        text_length: length of the token rows; longer captions are truncated.
        augmentation: the augmentation of the pictures; by default a random square crop.
        templates: sentences with `{}`, where the caption goes.
        spread: whether to keep pairs with the same first caption apart.
        seed: determines all random choices.
        process: the index of this process.
        num_processes: how many processes share the pairs.
        num_threads: threads that read and decode.
        max_skipped: the fraction of pictures that may be unreadable; the iterator raises
            ValueError if there are more, or if none can be read. It raises OSError if the machine
            has run out of memory or descriptors.
        tokenizer: turns texts into rows of ids, cutting with `truncate=True`; CLIP's by default.

    Returns:
        A Grain iterator of {"images": uint8 (b, n, n, 3), "tokens": int32 (b, l), "positions":
        int64 (b,)}, whose position `get_state` and `set_state` save and restore; and the count of
        skipped pairs. Positions number the pairs that this process has tried, from 0.

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
    config = augmentation or AugmentConfig()
    skipped = Skipped(max_skipped, math.ceil(len(pairs) / num_processes))

    def example(pair: Pair | None, rng: np.random.Generator) -> dict[str, Any] | None:
        if pair is None:
            return None
        caption = pair.captions[int(rng.integers(len(pair.captions)))]
        text = templates[int(rng.integers(len(templates)))].replace("{}", caption)
        try:
            with reading(pair.key):
                image = decode_image(pair.image)
            _check_shape(image.size, image_size * config.scale[1], config.fit)
            skipped.lost(_losses_of(image, config), pair.key)
            pixels = augment(image, image_size, config, rng)
        except Exception as error:  # decoders raise errors of any kind
            _raise_if_exhausted(error, pair.key)
            skipped.add(f"{pair.key}: {str(error) or type(error).__name__}")
            return None
        skipped.add(None)
        if tokenizer is None:
            return {"images": pixels, "tokens": tokenize(text, text_length, truncate=True)[0]}
        return {"images": pixels, "tokens": tokenizer(text, truncate=True)[0]}

    readable: Any = _Readable(pairs, skipped)
    if spread:
        dataset = grain.MapDataset.source(Spread(readable, groups_of(pairs), seed)).seed(seed)
    else:
        dataset = grain.MapDataset.source(readable).seed(seed).shuffle()
    dataset = dataset[process::num_processes].repeat().random_map(example)
    dataset = dataset.map_with_index(_placed)
    # A small buffer of pairs, because Grain polls all of them for each one; whole batches are
    # prefetched instead, by a thread that also reads if it is the only one.
    options = grain.ReadOptions(
        num_threads=num_threads if num_threads > 1 else 0, prefetch_buffer_size=8 * num_threads
    )
    # Grain drops None here, so that every batch is full.
    full = dataset.to_iter_dataset(options).batch(batch_size, drop_remainder=True)
    ahead = grain.experimental.ThreadPrefetchIterDataset(full, prefetch_buffer_size=2)
    return iter(ahead), skipped


def group_by_length(batch: Mapping[str, np.ndarray], *, multiple: int = 1) -> dict[str, Any]:
    """Sorts a batch by text length and trims each quarter of the texts to its longest.

    A contrastive loss doesn't depend on the order of its pairs, and a causal text tower not on what
    follows the end token: the loss and the gradients are the same, and the text tower computes
    less. For models whose `config.text.can_be_cut`.

    Args:
        batch: arrays with the same number of rows, among them "tokens" as from
            `clip_jax.tokenize`, with zeros after the end token.
        multiple: the number that must divide the rows of each group, micro-batches times devices.
            If it doesn't divide a quarter, there are two groups or one.

    Returns:
        The arrays, sorted, with "tokens" as a tuple of groups (b_i, l_i) of rising lengths: the
        least of 16, 24, 32 and 48 columns that holds the group's texts, else all. Groups of the
        same length are merged; a single group keeps the order of its rows.
    """
    tokens = batch["tokens"]
    groups = next(n for n in (4, 2, 1) if n == 1 or len(tokens) % (n * multiple) == 0)
    lengths = tokens.shape[1] - (tokens[:, ::-1] != 0).argmax(axis=1)
    order = np.argsort(lengths, kind="stable")
    rows: dict[int, int] = {}  # by columns
    for group in np.split(lengths[order], groups):
        columns = next((n for n in TEXT_LENGTHS if n >= group[-1]), tokens.shape[1])
        columns = min(columns, tokens.shape[1])
        rows[columns] = rows.get(columns, 0) + len(group)
    if len(rows) == 1:
        order = np.arange(len(tokens))
    arranged: dict[str, Any] = {name: array[order] for name, array in batch.items()}
    parts = np.split(arranged["tokens"], np.cumsum(list(rows.values()))[:-1])
    arranged["tokens"] = tuple(part[:, :n] for part, n in zip(parts, rows, strict=True))
    return arranged


def _placed(position: int, row: Any) -> dict[str, Any]:
    return {**row, "positions": np.int64(position)}


def _losses_of(image: Image.Image, config: AugmentConfig) -> list[str]:
    """Returns what of a picture doesn't reach its pixels; transparent parts are on a colour."""
    is_lost = {
        CLIPPED: not config.scale_16_bit and is_clipped(image),
        FRAMES: has_frames(image),
        REAL: is_real(image),
    }
    return [kind for kind, lost in is_lost.items() if lost]


def _check_shape(size: tuple[int, int], side: float, fit: Fit | None = None) -> None:
    # Of a whole picture, Pillow resizes one side before the other.
    times = 1 if fit in ("pad", "squash") else side / max(min(size), 1)
    if max(size) * side * times > MOST_PIXELS:
        raise ValueError(f"the image is too long and thin: its size is {size}")


class _Readable:
    """Pairs to read, with None for unreadable ones."""

    def __init__(self, pairs: Pairs, skipped: Skipped):
        self._pairs, self._skipped = pairs, skipped

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair | None:
        try:
            return self._pairs[index]
        except Exception as error:  # readers raise errors of any kind
            _raise_if_exhausted(error, getattr(error, "filename", None) or f"pair {index}")
            if isinstance(error, Unreachable):  # no other pair could be read either
                raise
            self._skipped.add(str(error))
            return None


def _raise_if_exhausted(error: Exception, what: str) -> None:
    if is_exhausted(error):
        raise OSError(
            f"{what}: {getattr(error, 'strerror', None) or 'out of memory'}: raise the limit "
            "(ulimit -n, memory) or lower data.num_threads, and run the same command again"
        ) from error
