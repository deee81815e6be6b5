"""What the pages of evaluations say of where their figures come from, and of what is left out."""

from collections.abc import Sequence

from clip_jax.evaluate.provenance import Provenance
from clip_jax.evaluate.results import LeftOut
from clip_jax.messages import MOST, counted
from clip_jax.pages import text


def facts_of(provenance: Provenance | None) -> dict[str, str | Sequence[str] | None]:
    """Returns the facts that stand at the head of a page."""
    if provenance is None:
        return {}
    return {
        "Data": provenance.source,
        "Model": provenance.model or "given as an object",
        "Fingerprint": provenance.fingerprint,
        "Pixels": ", ".join(f"{name} {value}" for name, value in provenance.pixels.items()) or None,
        "Made": f"{provenance.date.replace('T', ' ')}, by clip_jax {provenance.version}",
    }


def left_out_note(left_out: LeftOut) -> str:
    """Returns what an evaluation had to leave out as HTML; nothing if that is nothing."""
    if not left_out:
        return ""
    parts = []
    if left_out.problems:
        parts.append(f"{counted(len(left_out.problems), 'picture')} that can't be used")
    if left_out.missing:
        parts.append(f"{counted(left_out.missing, 'row')} not embedded yet")
    if left_out.unknown:
        parts.append(f"{counted(left_out.unknown, 'file')} without embedded rows")
    first = "".join(f"<li>{text(problem)}</li>" for problem in left_out.problems[:MOST])
    more = len(left_out.problems) - MOST
    rest = f"<li>and {more:,} more</li>" if more > 0 else ""
    told = f"Left out: {', '.join(parts)}."
    if not first:
        return f"<p class=bad>{told}</p>"
    return f"<details><summary class=bad>{told}</summary><ul>{first}{rest}</ul></details>"
