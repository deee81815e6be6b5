"""Pages of results: one self-contained HTML file each, with the same style, that asks no server.

The style is in `page.css`. A policy in each page forbids the browser to load anything from
elsewhere, whatever stands in the names, captions and addresses that the page shows.
"""

import base64
import datetime
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

# Characters of a name, caption or path that are shown.
MOST_CHARACTERS = 300
# Templates and the like that are shown.
MOST_LINES = 3

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{heading}</h1>
{facts}
</header>
<main>
{body}
</main>
{script}</body>
</html>
"""


def page(
    title: str,
    body: Iterable[str],
    *,
    heading: str | None = None,
    facts: Mapping[str, str | Sequence[str] | None],
    script: str = "",
) -> str:
    """Returns a page.

    Args:
        title: plain text.
        body: HTML, in parts.
        heading: the title as HTML.
        facts: what the page was made from, as plain text by name; several lines may be given, and
            None is left out.
        script: JavaScript that runs when the page is there.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    if script:
        # Nothing but this very script runs.
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return _PAGE.format(
        policy=policy,
        title=html.escape(shortened(title)),
        style=files("clip_jax").joinpath("page.css").read_text("utf-8"),
        heading=text(title) if heading is None else heading,
        facts=_facts(facts),
        body="\n".join(body),
        script=f"<script>{script}</script>\n" if script else "",
    )


def text(words: object) -> str:
    """Returns plain text as HTML: escaped, cut, and apart from the direction of what is around."""
    return f"<bdi>{html.escape(shortened(str(words)))}</bdi>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Returns a table.

    Args:
        header: plain text.
        rows: cells in the order of the header, as HTML.
        numbers: the columns that hold numbers.
    """
    of_numbers = set(numbers)

    def line(tag: str, cells: Sequence[str]) -> str:
        marked = (
            f"<{tag}{' class=number' if i in of_numbers else ''}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    lines = [line("th", [html.escape(name) for name in header])]
    lines += [line("td", cells) for cells in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def figures(values: Mapping[str, str]) -> str:
    """Returns large figures in a row, each with its name."""
    items = (f"<li><b>{html.escape(value)}</b>{html.escape(n)}</li>" for n, value in values.items())
    return f"<ul class=figures>{''.join(items)}</ul>"


def now() -> str:
    """Returns the time, to the second, in ISO 8601 with the time zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def data(identifier: str, document: Any) -> str:
    """Returns a JSON document for a page's script, which can't end the element it stands in."""
    text = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def _facts(facts: Mapping[str, str | Sequence[str] | None]) -> str:
    lines = []
    for name, value in facts.items():
        values = [value] if isinstance(value, str) else list(value or ())
        shown = [text(each) for each in values[:MOST_LINES]]
        if (more := len(values) - MOST_LINES) > 0:
            shown.append(f"and {more:,} more")
        if shown:
            lines.append(f"<dt>{html.escape(name)}</dt><dd>{'<br>'.join(shown)}</dd>")
    return "<dl class=facts>" + "\n".join(lines) + "</dl>"


def shortened(words: str, most: int = MOST_CHARACTERS) -> str:
    """Returns text of so many characters at most, by default as long as a page shows it."""
    return words if len(words) <= most else words[: most - 1] + "\u2026"
