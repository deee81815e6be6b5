"""A page of search results: one self-contained HTML file, thumbnails included."""

import base64
import contextlib
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax.preprocess import decode_image
from clip_jax.sources import read_picture
from clip_jax.storage import is_remote

# Pixels of a thumbnail's longer side: sharp at a width of 200 on a high-density screen.
SIDE = 400

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
  padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; font-weight: 600; }}
h1 img {{ height: 6rem; vertical-align: middle; border-radius: .3rem; }}
ol {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  list-style: none; padding: 0; }}
li {{ border: 1px solid #8884; border-radius: .5rem; overflow: hidden; }}
li > img, li > p.none {{ aspect-ratio: 1; background: #8881; display: block; object-fit: contain;
  width: 100%; margin: 0; }}
li > p.none {{ align-content: center; color: #888; overflow-wrap: anywhere; text-align: center; }}
div {{ overflow-wrap: anywhere; padding: .5rem .7rem .7rem; }}
b {{ font-variant-numeric: tabular-nums; }}
small {{ color: #888; display: block; }}
{style}</style>
<h1>{title_html}</h1>
{before}<ol>
{items}
</ol>
</html>
"""


def contact_sheet(
    hits: Sequence[dict[str, Any]],
    query: str,
    *,
    query_image: str | None = None,
    image_column: str = "image",
    source: str | None = None,
    fetch: bool = False,
    style: str = "",
    before: str = "",
) -> str:
    """Returns an HTML page that shows the results of a search.

    Args:
        hits: the results of `search`. A picture that can't be read any more is left blank.
        query: the text that was searched for, or the name of the picture.
        query_image: the path of the picture that was searched for.
        image_column: the column of pictures in Parquet files.
        source: the input of the job. Remote pictures are fetched only if they lie within it:
            anybody may have written other addresses into a table.
        fetch: whether to fetch all remote pictures.
        style: additional CSS.
        before: HTML between the heading and the pictures.
    """
    title = html.escape(query)
    shown = _thumbnail(query_image, image_column) if query_image else None

    def picture(hit: dict[str, Any], alt: str) -> str:
        path = hit["path"]
        if not path:
            return ""
        if not (fetch or not is_remote(path) or (source and _is_within(path, source))):
            return f'<p class="none">not fetched: {html.escape(path)}</p>'
        if found := _thumbnail(path, image_column):
            return f'<img src="{found}" alt="{alt}">'
        return '<p class="none">not there any more</p>'

    items = "\n".join(_item(number, hit, picture) for number, hit in enumerate(hits, 1))
    title_html = f'<img src="{shown}" alt=""> {title}' if shown else title
    return _PAGE.format(title=title, title_html=title_html, items=items, style=style, before=before)


def _item(number: int, hit: dict[str, Any], picture: Callable[[dict[str, Any], str], str]) -> str:
    key, caption = html.escape(hit["key"]), html.escape(hit.get("caption") or "")
    text = f"{caption}<small>{key}</small>" if caption else key
    return (
        f"<li>{picture(hit, caption or key)}<div><b>{number}. {hit['score']:.4f}</b><br>{text}"
        "</div></li>"
    )


def _is_within(path: str, source: str) -> bool:
    """Whether a picture lies in a job's input itself, rather than at an address that it names."""
    head = re.split(r"[*?\[{]", source, maxsplit=1)[0]
    if head == source:
        return path.startswith(source.rstrip("/") + "/")
    return path.startswith(head) and re.fullmatch(r".+\.(tar|parquet)/.+", path) is not None


def _thumbnail(path: str, image_column: str) -> str | None:
    """Returns a thumbnail of a picture as a data URL; None if it can't be read."""
    with contextlib.suppress(OSError, ValueError):
        image = decode_image(read_picture(path, image_column))
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return None
