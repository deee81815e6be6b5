"""Shows a docstring's "Example:" as code; mkdocstrings knows that section as "Examples:"."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section as docstrings are read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Does so for one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.M
            )
