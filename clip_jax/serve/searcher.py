"""Answers requests for rows: embeds what is asked for, and ranks the rows, for several at once."""

import dataclasses
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.encoder import Encoder
from clip_jax.image_size import sides_of
from clip_jax.messages import counted
from clip_jax.nn.text import pooled_positions
from clip_jax.progress import remark
from clip_jax.search.index import Damaged, Index
from clip_jax.search.several import ExactIndex
from clip_jax.serve.cache import Cache
from clip_jax.serve.columns import Columns
from clip_jax.serve.queries import LAST, Query, Request
from clip_jax.serve.refusals import Refusal, bad
from clip_jax.weights.opened import Opened

# Texts of one call of the encoder; fewer run a program for one. Each program takes seconds to
# compile: there are two of these sizes times two lengths, and one for a picture.
BATCH = 8
TEXT_LENGTHS = (16,)
# What is got ready, in this order, so that the first answers don't wait for the last program.
ROWS, SHORT_TEXTS, PICTURES, LONG_TEXTS = "rows", "short texts", "pictures", "long texts"
# Requests of one pass over the rows.
REQUESTS = 16
# A ranking that is asked for is made this much longer, so that the next pages cost nothing.
AHEAD = 4
# What is remembered: the embeddings of texts and of pictures that were sent, and rankings by their
# bytes.
MOST_TEXTS, MOST_PICTURES, RANKINGS = 4_096, 4_096, 64 << 20
# A concept beside a picture counts this much: pictures differ more from each other than a text
# differs between them, so that its part would hardly be seen.
BESIDE_A_PICTURE = 2.0


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The rows nearest to a query.

    Attributes:
        scores: the cosines; None for rows in the order of the input.
        numbers: the rows, best first.
        total: how many rows there are in all.
    """

    scores: np.ndarray | None
    numbers: np.ndarray
    total: int

    def is_enough_for(self, request: Request) -> bool:
        """Whether it has the page that is asked for."""
        return len(self.numbers) >= min(request.offset + request.k, self.total)

    def page(self, request: Request) -> "Ranking":
        """Returns the page that is asked for."""
        some = slice(request.offset, request.offset + request.k)
        scores = None if self.scores is None else self.scores[some]
        return Ranking(scores, self.numbers[some], self.total)


@dataclasses.dataclass(frozen=True)
class Embed:
    """A picture that was sent, to be embedded: its identifier, and its pixels (n, m, 3) uint8."""

    identifier: str
    pixels: np.ndarray


class Searcher:
    """Searches the embeddings of one job.

    Attributes:
        index: the embeddings.
        columns: the columns of the rows.
        step: what is being done before it can answer all requests; None when it can.
    """

    def __init__(self, opened: Opened, index: Index, columns: Columns, approximate: Any = None):
        """Compiles nothing yet.

        Args:
            opened: the job's model.
            index: its embeddings.
            columns: the columns of its rows.
            approximate: an index for approximate search, where there is one.
        """
        self._opened, self.columns = opened, columns
        self._approximate: Any = approximate
        self.index = ExactIndex(index)
        if columns.damaged:
            self.index.leave_out(columns.damaged)
        self._encoder = Encoder(
            opened.model, batch_size=BATCH, normalize=True, text_lengths=TEXT_LENGTHS
        )
        self._texts: Cache[np.ndarray] = Cache(MOST_TEXTS)
        self._pictures: Cache[np.ndarray] = Cache(MOST_PICTURES)
        self._rankings: Cache[Ranking] = Cache(RANKINGS, lambda r: 12 * len(r.numbers) + 256)
        self.step: str | None = "starting"
        self._ready: set[str] = set()

    def prepare(self) -> None:
        """Compiles all programs, so that no request has to; sets `step` meanwhile."""
        self.step = "reading the embeddings"
        for count in (1, 2, REQUESTS):
            queries = np.zeros((count, self.index.dim), np.float32)
            self.index.search(queries, [1] * count)
        self._ready.add(ROWS)
        self._prepare_texts(SHORT_TEXTS, "a")
        self.step = "compiling the program for pictures"
        size = sides_of(self._opened.preprocess.image_size)
        self._encoder.images(np.zeros((1, *size, 3), np.uint8))
        self._ready.add(PICTURES)
        self._prepare_texts(LONG_TEXTS, "a " * 100)
        self.step = None

    def _prepare_texts(self, kind: str, text: str) -> None:
        if self.can_read_texts:
            tokens = self._opened.tokens(text)
            for count in (1, BATCH):
                self.step = f"compiling the program for {counted(count, kind.removesuffix('s'))}"
                self._encoder.texts(np.repeat(tokens, count, axis=0))
        self._ready.add(kind)

    def check_ready(self, what: str) -> None:
        """Checks that what a request needs is there: `ROWS` or `PICTURES`, say.

        Raises:
            Refusal: it would have to wait for a program to be compiled.
        """
        if self.step is not None and what not in self._ready:
            raise Refusal(503, f"not ready yet: {self.step}")

    @property
    def can_read_texts(self) -> bool:
        """Whether the model's tokenizer is at hand."""
        try:
            self._opened.check_strings()
        except ValueError:
            return False
        return True

    def knows(self, picture: str) -> bool:
        """Whether a picture that was sent is remembered."""
        return self._pictures.get(picture) is not None

    def answer(self, items: Sequence[Request | Embed]) -> list[Any]:
        """Answers a batch.

        Returns:
            For each request a `Ranking` of its page; for each picture None; or a `Refusal`.
        """
        for item in items:
            if isinstance(item, Embed) and not self.knows(item.identifier):
                found = self._encoder.images(item.pixels[None])[0]
                self._pictures.put(item.identifier, found)
        requests = [item for item in items if isinstance(item, Request)]
        answers: dict[int, Any] = {}
        try:
            self._embed_texts([text for r in requests for text in r.query.texts])
        except (ValueError, Refusal):  # such as no tokenizer: whose texts are at fault?
            for request in requests:
                try:
                    self._embed_texts(request.query.texts)
                except Refusal as refusal:
                    answers[id(request)] = refusal
                except ValueError as error:
                    answers[id(request)] = bad(str(error))
        sound = [request for request in requests if id(request) not in answers]
        answers |= {id(r): a for r, a in zip(sound, self._ranked(sound), strict=True)}
        return [answers.get(id(item)) for item in items]

    def first(self, request: Request) -> Ranking:
        """Returns rows in the order of the input."""
        mask = self._mask(request)
        begin, end = request.offset, request.offset + request.k
        if mask is None:
            total = self.index.num_rows
            return Ranking(None, np.arange(min(begin, total), min(end, total)), total)
        numbers = np.flatnonzero(mask)
        return Ranking(None, numbers[begin:end], len(numbers))

    def rows(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """Returns the columns of some rows; what of them is damaged is left out from now on."""
        try:
            return list(self.columns.rows(numbers))
        except Damaged as error:
            self.index.leave_out(error.parts)
            raise Refusal(503, "a part was found to be damaged: ask again without it") from None

    def _mask(self, request: Request) -> np.ndarray | None:
        mask = self.columns.mask(request.where)
        if new := self.columns.damaged - self.index.lost:
            self.index.leave_out(new)
        return self.index.present(mask)

    def _embed_texts(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if self._texts.get(text) is None]
        if new:
            self._opened.check_strings()
            tokens = self._opened.tokens(new)
            self.check_ready(self._length(tokens))
            embedded = self._encoder.texts(tokens)
            for text, embedding in zip(new, embedded, strict=True):
                self._texts.put(text, embedding)

    def _length(self, tokens: np.ndarray) -> str:
        """Returns `SHORT_TEXTS` or `LONG_TEXTS`: which programs embed these rows of ids."""
        config = self._opened.model.config.text
        if not config.can_be_cut:  # one length is all there is
            return SHORT_TEXTS
        longest = np.max(pooled_positions(tokens, config)) + 1
        return SHORT_TEXTS if longest <= max(TEXT_LENGTHS) else LONG_TEXTS

    def _ranked(self, requests: Sequence[Request]) -> list[Ranking | Refusal]:
        """Returns the pages of rankings, those that are not remembered by one pass over the rows.

        Requests for the same ranking share it.
        """
        answers: list[Any] = [None] * len(requests)
        waiting: dict[Hashable, list[int]] = {}
        for place, request in enumerate(requests):
            known = self._rankings.get(request.ranking)
            if known is not None and known.is_enough_for(request):
                answers[place] = known.page(request)
            else:
                waiting.setdefault(request.ranking, []).append(place)
        searches = []
        for places in waiting.values():
            longest = max((requests[place] for place in places), key=lambda r: r.offset + r.k)
            try:
                searches.append(
                    (places, _Search(longest, self._vector(longest.query), self._mask(longest)))
                )
            except Refusal as refusal:
                for place in places:
                    answers[place] = refusal
        self._search([search for _, search in searches])
        for places, search in searches:
            ranking = search.ranking(self.index.num_rows)
            self._rankings.put(search.request.ranking, ranking)
            for place in places:
                answers[place] = ranking.page(requests[place])
        return answers

    def _search(self, searches: Sequence["_Search"]) -> None:
        nearly, index = [], self._approximate
        if index is not None:
            nearly = [s for s in searches if s.mask is None and not s.request.exact]
        if nearly and index is not None:
            queries = np.stack([search.vector for search in nearly])
            try:
                found = index.search(queries, max(search.k for search in nearly))
            except ValueError as error:  # damaged
                remark(f"all rows are compared from now on, as the index can't be used: {error}")
                self._approximate, nearly = None, []
            else:
                for search, scores, numbers in zip(nearly, *found, strict=True):
                    search.scores, search.numbers = scores[: search.k], numbers[: search.k]
        if exactly := [search for search in searches if search not in nearly]:
            queries = np.stack([search.vector for search in exactly])
            ks, masks = [s.k for s in exactly], [s.mask for s in exactly]
            for search, found in zip(exactly, self.index.search(queries, ks, masks), strict=True):
                search.scores, search.numbers = found

    def _vector(self, query: Query) -> np.ndarray:
        """Returns the normalised embedding of a query.

        Raises:
            Refusal: a picture is not remembered, there is no such row, or nothing is left.
        """
        vector, weight = np.zeros(self.index.dim, np.float32), 1.0
        if query.picture:
            found = self._pictures.get(query.picture)
            if found is None:
                raise Refusal(404, "the picture is not remembered any more: send it again")
            vector, weight = vector + found, BESIDE_A_PICTURE
        if query.like is not None:
            vector, weight = vector + self._embedding(query.like), BESIDE_A_PICTURE
        texts = (*((query.text,) if query.text else ()), *query.plus)
        for sign, some in ((1, texts), (-1, query.minus)):
            for text in some:
                embedding = self._texts.get(text)
                assert embedding is not None  # embedded before, and the cache is large enough
                vector = vector + sign * weight * embedding
        norm = float(np.linalg.norm(vector))
        if norm < 1e-3:
            raise bad("what is subtracted leaves nothing to search for")
        # A single embedding stays as it is, to the bit.
        parts = len(query.texts) + bool(query.picture) + (query.like is not None)
        return vector if parts == 1 else (vector / norm).astype(np.float32)

    def _embedding(self, number: int) -> np.ndarray:
        if number >= self.index.num_rows:
            raise Refusal(404, f"there is no row {number}; the last is {self.index.num_rows - 1}")
        try:
            return self.index.embeddings([number])[0]
        except Damaged as error:
            self.index.leave_out(error.parts)
            raise Refusal(404, f"row {number} is in a damaged part") from None


class _Search:
    """A ranking to be made, longer than was asked for."""

    def __init__(self, request: Request, vector: np.ndarray, mask: np.ndarray | None):
        self.request, self.vector, self.mask = request, vector, mask
        self._wanted = min((request.offset + request.k) * AHEAD, LAST)
        # A row is the nearest to itself, and is left out.
        self.k = self._wanted + (request.query.like is not None)
        self.scores, self.numbers = np.empty(0, np.float32), np.empty(0, np.int64)

    def ranking(self, num_rows: int) -> Ranking:
        """Returns what was found."""
        scores, numbers, mask = self.scores, self.numbers, self.mask
        total = num_rows if mask is None else int(mask.sum())
        if (like := self.request.query.like) is not None:
            others = numbers != like
            scores, numbers = scores[others], numbers[others]
            total -= mask is None or bool(mask[like])
        return Ranking(scores[: self._wanted], numbers[: self._wanted], total)


def timed(begin: float) -> float:
    """Returns the milliseconds since a moment of `time.perf_counter`."""
    return round(1000 * (time.perf_counter() - begin), 1)
