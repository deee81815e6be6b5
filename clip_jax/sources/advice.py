"""What to do with a table of addresses, whose pictures are not there yet."""

import re
from collections.abc import Sequence

from clip_jax.sources.columns import CAPTION_NAMES, Columns
from clip_jax.sources.datasets import OF_IMG2DATASET

_ADDRESS = re.compile("https?://", re.IGNORECASE)


def is_address(text: str) -> bool:
    """Whether a text is a web address."""
    return _ADDRESS.match(text.strip()) is not None


def address_columns(names: Sequence[str]) -> list[str]:
    """Returns the columns that hold addresses, by their names.

    A table without a header has its first row in place of names.
    """
    return [name for name in names if is_address(name) or name.lower().endswith("url")]


def advice_for_addresses(
    source: str, names: Sequence[str], columns: Columns, *, embeds: bool = True
) -> str:
    """Returns what a table of addresses is told in place of being read.

    Args:
        source: the table.
        names: its columns.
        columns: those that are asked for.
        embeds: whether it was to be embedded, which can be done without files of pictures.
    """
    ending = source.rpartition(".")[2].lower()
    kind = f"--url_list {source!r} --input_format {ending}"
    where_to = "--output_format webdataset --output_folder pictures"
    found = address_columns(names)
    if OF_IMG2DATASET.issubset(names):
        return (
            f"{source} is what img2dataset notes beside the pictures that it downloads: give the "
            "folder that it has written, where the pictures are"
        )
    if any(is_address(name) for name in names):
        return (
            f"{source} is a table of web addresses without a header, and without pictures: write "
            "the names of its columns into a first line, such as url and caption, have img2dataset "
            f"download the pictures (img2dataset {kind} --url_col url --caption_col caption "
            f"{where_to}), and give the folder that it writes"
        )
    if not found:  # a list, one a line
        return (
            f"{source} is a list of web addresses, without pictures: have img2dataset download "
            f"them (img2dataset {kind} {where_to}), and give the folder that it writes"
        )
    captions = [n for n in (columns.caption, *CAPTION_NAMES, "TEXT", "caption") if n in names]
    options = f"--url_col {found[0]}" + (f" --caption_col {captions[0]}" if captions else "")
    texts = "; its captions alone by what='texts'" if columns.caption in names else ""
    advice = (
        f"{source} has web addresses in {', '.join(map(repr, found))}, and no pictures: have "
        f"img2dataset download them (img2dataset {kind} {options} {where_to}), and give the folder "
        f"that it writes"
    )
    if not embeds:
        return advice
    return f"{advice}. A few are fetched as they are embedded, by image_column={found[0]!r}{texts}"
