"""A page of search results: one self-contained HTML file, thumbnails included."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.pages import page, text
from clip_jax.thumbnails import Thumbnails

# Results on a page.
SHOWN = 2_000


def contact_sheet(
    hits: Sequence[dict[str, Any]],
    query: str,
    *,
    query_image: str | None = None,
    image_column: str = "image",
    source: str | None = None,
    fetch: bool = False,
    facts: Mapping[str, str | None] | None = None,
) -> str:
    """Returns an HTML page that shows the results of a search, each a link to its original.

    Args:
        hits: the results of `search`. A picture that can't be read any more is left blank. The
            page says how many there are beyond the first 2,000, which it shows; and it has no more
            than 32 MB of pictures.
        query: the text that was searched for, or the name of the picture.
        query_image: the path of the picture that was searched for.
        image_column: the column of pictures in Parquet files.
        source: the input of the job. Remote pictures are fetched only if they lie within it:
            anybody may have written other addresses into a table.
        fetch: whether to fetch all remote pictures.
        facts: what else the page says of the search, such as the model, by name.
    """
    thumbnails = Thumbnails(image_column, source, fetch)
    shown = thumbnails.url(query_image) if query_image else None
    heading = f'<img src="{shown}" alt=""> {text(query)}' if shown else text(query)
    items = [_item(hit, thumbnails) for hit in hits[:SHOWN]]
    body = ['<ol class="cards found">', *items, "</ol>"]
    if (more := len(hits) - SHOWN) > 0:
        body.append(f"<p class=note>{more:,} more results are not on this page.</p>")
    return page(query, body, heading=heading, facts=facts or {})


def _item(hit: dict[str, Any], thumbnails: Thumbnails) -> str:
    key, caption = hit["key"], hit.get("caption") or ""
    below = f"<small>{text(key)}</small>" if caption else ""
    return (
        f"<li>{thumbnails.picture(hit['path'], caption or key)}<div class=line>"
        f"{text(caption or key)}<b>{hit['score']:.4f}</b></div>{below}</li>"
    )
