"""The page about retrieval: recalls, the ranks of what belongs together, the worst mistakes."""

import collections
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from clip_jax.evaluate.origin import facts_of, left_out_note
from clip_jax.evaluate.recall import EXACT_RANKS
from clip_jax.evaluate.results import RetrievalResult
from clip_jax.evaluate.retrieval_mistakes import RetrievalMistake
from clip_jax.pages import figures, page, table, text
from clip_jax.thumbnails import Thumbnails

# Captions of an image that are shown.
CAPTIONS = 5
_WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def retrieval_page(title: str, result: RetrievalResult) -> str:
    """Returns the page about what `retrieval` returns."""
    origin = result.provenance
    thumbnails = Thumbnails(origin.image_column, origin.pictures) if origin else Thumbnails()
    body = [
        figures({"images": f"{result.num_images:,}", "captions": f"{result.num_texts:,}"}),
        left_out_note(result.left_out),
        "<h2>Recall</h2>",
        _recalls(result.recalls),
        "<h2>Ranks</h2>",
        "<p class=note>The place of an image's best caption among all captions, and of a caption's "
        "image among all images.</p>",
        *(_ranks(way, result.ranks[key]) for key, way in _WAYS.items()),
    ]
    captions = collections.defaultdict(list)
    of_interest = {mistake.query for mistake in result.mistakes["image_to_text"]}
    for number, image in enumerate(result.pairs.tolist()):
        if image in of_interest:
            captions[image].append(number)
    for key, what in (("image_to_text", "captions by image"), ("text_to_image", "images by text")):
        mistakes, wrong = result.mistakes[key], int((result.ranks[key] > 1).sum())
        body += [f"<h2>Mistakes: {what}</h2>", _note(len(mistakes), wrong, len(result.ranks[key]))]
        cards = [
            _of_image(mistake, captions[mistake.query], result, thumbnails)
            if key == "image_to_text"
            else _of_text(mistake, result, thumbnails)
            for mistake in mistakes
        ]
        body += ["<ol class='cards wide'>", *cards, "</ol>"]
    return page(title, body, facts=facts_of(origin))


def _recalls(recalls: dict[str, dict[int, float]]) -> str:
    ks = list(recalls["image_to_text"])
    rows = [(way, *(f"{recalls[key][k]:.2%}" for k in ks)) for key, way in _WAYS.items()]
    return table(("recall", *(f"at {k}" for k in ks)), rows, range(1, len(ks) + 1))


def rank_counts(ranks: Int[np.ndarray, " n"]) -> list[tuple[str, int]]:
    """Returns how many ranks lie in 1, 2 to 5, 6 to 10, 11 to 100, and so on to the largest."""
    found, begin = [], 1
    for end in (*EXACT_RANKS, np.inf):
        name = f"{begin:,}" if begin == end else f"{begin:,} to {end:,}"
        if end == np.inf:
            name = f"{begin:,} and more"
        found.append((name, int(((ranks >= begin) & (ranks <= end)).sum())))
        if end >= ranks.max():
            break
        begin = int(end) + 1
    return found


def _ranks(way: str, ranks: Int[np.ndarray, " n"]) -> str:
    counts = rank_counts(ranks)
    most = max(count for _, count in counts)
    rows = [
        (
            name.replace(" ", "&nbsp;"),
            f"{count:,}",
            f"{count / len(ranks):.2%}",
            f'<i style="width: {100 * count / most:.2f}%"></i>' if count else "",
        )
        for name, count in counts
    ]
    shown = table(("rank", "rows", "share", ""), rows, (1, 2)).replace("<td><i", "<td class=bar><i")
    return f"<h3>{way}</h3><p class=note>Median rank {np.median(ranks):,g}.</p>{shown}"


def _note(shown: int, wrong: int, count: int) -> str:
    if not wrong:
        return f"<p class=note>None of {count:,}.</p>"
    which = "" if wrong == shown else f" These are the {shown:,} that rank worst."
    return f"<p class=note>{wrong:,} of {count:,} do not come first.{which}</p>"


def _of_image(
    mistake: RetrievalMistake,
    captions: Sequence[int],
    result: RetrievalResult,
    thumbnails: Thumbnails,
) -> str:
    """Returns the card of an image whose captions were not found first."""
    key = result.keys[mistake.query]
    best = f"{text(result.captions[mistake.positive])} <span class=note>{mistake.score:.4f}</span>"
    others = [text(result.captions[n]) for n in captions if n != mistake.positive]
    more = "".join(f"<br>{other}" for other in others[: CAPTIONS - 1])
    if (left := len(others) - CAPTIONS + 1) > 0:
        more += f"<br>and {left:,} more"
    found = "".join(
        f"<li>{text(result.captions[row])} <span class=note>{score:.4f}</span></li>"
        for row, score in mistake.found
    )
    return (
        f"<li>{_picture(mistake.query, result, thumbnails)}<div class=text>"
        f"<small>{text(key)}</small>"
        f"<p><b class=good>rank {mistake.rank:,}</b> {best}{more}</p>"
        f"<b class=bad>found before</b><ol>{found}</ol></div></li>"
    )


def _of_text(mistake: RetrievalMistake, result: RetrievalResult, thumbnails: Thumbnails) -> str:
    """Returns the card of a caption whose image was not found first."""

    def picture(image: int, kind: str, words: str, score: float) -> str:
        shown = _picture(image, result, thumbnails)
        return (
            f"<div>{shown}<p class=note><b class={kind}>{words}</b> {score:.4f}<br>"
            f"{text(result.keys[image])}</p></div>"
        )

    found = [picture(row, "bad", "found first", score) for row, score in mistake.found[:1]]
    right = picture(mistake.positive, "good", f"rank {mistake.rank:,}", mistake.score)
    return (
        f"<li><div class=text>{text(result.captions[mistake.query])}</div>"
        f"<div class=two>{''.join(found)}{right}</div></li>"
    )


def _picture(image: int, result: RetrievalResult, thumbnails: Thumbnails) -> str:
    read = functools.partial(result.read, image) if result.read else None
    return thumbnails.picture(result.paths[image], result.keys[image], read)
