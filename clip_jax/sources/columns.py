"""The names of a table's columns, also where they are those of other programs."""

import collections
import dataclasses
from collections.abc import Sequence

# What OpenCLIP and Hugging Face's data sets call these columns. They are taken only where a table
# has none of the name that is asked for, and nobody has asked for another.
IMAGE_NAMES = ("filepath", "file_name")
CAPTION_NAMES = ("title", "text")
# What WebDataset's tar files, turned into Parquet, call it beside a column of pictures.
TEXT_NAME = "txt"
# Training takes several captions of a picture from a column of this name.
CAPTIONS = "captions"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of a table's columns.

    A table that has neither an `image` nor a `caption` may call them as OpenCLIP or Hugging Face's
    data sets do: `filepath` or `file_name`, `title` or `text`.

    Attributes:
        image: the picture: its path relative to the table's folder, or the bytes of its file.
        caption: the text, or a list of texts, of which embedding uses the first.
        key: the row's key; without such a column it is the path or the row's number.
        others: columns to pass through unchanged.

    Raises:
        ValueError: one of the others is named twice.
    """

    image: str = "image"
    caption: str = "caption"
    key: str = "key"
    others: tuple[str, ...] = ()

    def __post_init__(self):
        if twice := [name for name, n in collections.Counter(self.others).items() if n > 1]:
            raise ValueError(f"columns to take along are named twice: {', '.join(twice)}")

    def image_in(self, names: Sequence[str]) -> str:
        """Returns the name that the column of pictures has among a table's columns.

        Raises:
            ValueError: two columns may be meant.
        """
        return _known_as(self.image, Columns.image, IMAGE_NAMES, names, "image_column")

    def caption_in(self, names: Sequence[str]) -> str:
        """Returns the name that the column of captions has among a table's columns.

        Raises:
            ValueError: two columns may be meant.
        """
        return _known_as(self.caption, Columns.caption, CAPTION_NAMES, names, "caption_column")

    def found_in(self, names: Sequence[str], pictures: Sequence[str] = ()) -> "Columns":
        """Returns these names; other programs' where the table has neither picture nor caption.

        Args:
            names: the table's columns.
            pictures: those that are known to hold pictures, one of which is taken whatever its
                name.

        Raises:
            ValueError: two columns may be meant.
        """
        if self.image not in names and self.image == Columns.image and pictures:
            image = _known_as(self.image, Columns.image, pictures, names, "image_column")
            caption = self.caption_in(names)
            if caption not in names and caption == Columns.caption and TEXT_NAME in names:
                caption = TEXT_NAME
            return dataclasses.replace(self, image=image, caption=caption)
        if self.image in names or self.caption in names:
            return self
        image, caption = self.image_in(names), self.caption_in(names)
        return dataclasses.replace(self, image=image, caption=caption)


def as_columns(columns: Columns | None) -> Columns:
    """Returns names of columns, the usual ones for None.

    Raises:
        TypeError: they are given as something else.
    """
    if columns is None:
        return Columns()
    if not isinstance(columns, Columns):
        raise TypeError(
            f"columns must be clip_jax.embed.Columns, such as Columns(image=...). Got "
            f"{type(columns).__name__}."
        )
    return columns


def lacking(
    source: str, missing: Sequence[str], names: Sequence[str], others: Sequence[str] = ()
) -> ValueError:
    """Returns the error of a table that lacks columns; it lists those that there are.

    Args:
        source: the table.
        missing: the names that it lacks.
        names: those that it has.
        others: columns that were asked for beside picture, caption and key.
    """
    way_out = "Say which hold what by image_column, caption_column, key_column, in a TOML file in "
    way_out = (
        "Say which by label_column or extra_columns"
        if set(missing) <= set(others)
        else way_out + "[data]"
    )
    return ValueError(
        f"{source}: no column {' and no column '.join(map(repr, missing))}; its columns are "
        f"{', '.join(map(repr, names)) or 'none'}. {way_out}."
    )


def _known_as(
    asked: str, default: str, others: Sequence[str], names: Sequence[str], option: str
) -> str:
    if asked in names or asked != default:
        return asked
    found = [name for name in others if name in names]
    if len(found) > 1:
        raise ValueError(
            f"no column {asked!r}, and either of {' and '.join(map(repr, found))} may be meant: "
            f"say which by {option}"
        )
    return found[0] if found else asked
