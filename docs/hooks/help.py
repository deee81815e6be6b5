"""Puts each command's own `--help` where a page has `<!-- help: COMMAND -->`."""

import contextlib
import io
import os
import re
from typing import Any
from unittest import mock

from clip_jax.cli import main

PLACE = re.compile(r"^<!-- help:(.*?)-->$", re.M)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fills in the helps of a page."""
    return PLACE.sub(lambda found: f"```text\n{help_of(found[1].split())}```", markdown)


def help_of(command: list[str]) -> str:
    """What a command prints when it is asked for help."""
    out = io.StringIO()
    columns = mock.patch.dict(os.environ, COLUMNS="80", NO_COLOR="1")
    with columns, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return out.getvalue()
