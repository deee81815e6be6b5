"""What emoji there are and what they are called, by Unicode."""

import dataclasses
import json
import re
from pathlib import Path

COMPONENTS, FLAGS = 2, 9  # groups of Unicode's; components are skin tones and hair


@dataclasses.dataclass(frozen=True)
class Concept:
    """An emoji without a skin tone.

    Attributes:
        code: its code points in hexadecimal, without variation selectors.
        name: Unicode's short name.
        keywords: Unicode's, and more, but for those that another emoji has as its name.
        is_base: whether it is neither joined of several emoji nor a flag: those are tested.
    """

    code: str
    name: str
    keywords: tuple[str, ...]
    is_base: bool

    @property
    def captions(self) -> list[str]:
        """What a drawing of it may be called: the name three times as often as a keyword."""
        return [self.name] * (3 * len(self.keywords) or 1) + list(self.keywords)


def concepts(package: Path) -> list[Concept]:
    """All emoji without skin tones, in Unicode's order."""
    document = json.loads((package / "en" / "data.json").read_text())
    entries = [e for e in document if e.get("group") not in (None, COMPONENTS)]
    # "cat" is a keyword of ten emoji and the name of one, which is what it should find first.
    names = {entry["label"] for entry in entries}
    return [
        Concept(
            code=plain(entry["hexcode"]),
            name=entry["label"],
            keywords=tuple(word for word in entry.get("tags", ()) if word not in names),
            is_base="200D" not in entry["hexcode"] and entry["group"] != FLAGS,
        )
        for entry in sorted(entries, key=lambda entry: entry["order"])
    ]


def codes_by_name(package: Path, known: list[Concept]) -> dict[str, str]:
    """The code points of whatever name or shortcode belongs to one concept alone."""
    found: dict[str, set[str]] = {}
    for path in sorted((package / "en" / "shortcodes").glob("*.json")):
        for code, names in json.loads(path.read_text()).items():
            for name in [names] if isinstance(names, str) else names:
                found.setdefault(squeezed(name), set()).add(plain(code))
    # The names come last, since they outweigh a shortcode of another concept.
    found.update({squeezed(concept.name): {concept.code} for concept in known})
    return {name: min(codes) for name, codes in found.items() if len(codes) == 1}


def squeezed(name: str) -> str:
    """Letters and digits alone, which is what names in different spellings agree on."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("&", "and"))


def plain(code: str) -> str:
    """Code points without the variation selector, which some write and some don't."""
    return "-".join(point for point in code.upper().split("-") if point != "FE0F")
