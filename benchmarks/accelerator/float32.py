"""Section 3: images a second of ViT-L/14 in float32, true and by TF32, against PyTorch."""

import functools
from typing import Any

from benchmarks.accelerator import keep, models, ours, peers_of_images
from benchmarks.accelerator.cases import Case
from benchmarks.accelerator.names import COMPILED, EAGER, OURS
from benchmarks.accelerator.timing import TINY, Contender, alone, beside

# Our precision, PyTorch's, and what rows call the two.
PRECISIONS = (("highest", "highest", "float32 highest"), ("default", "high", "TF32"))
UNIT = "images/s"


def cases(tiny: bool) -> list[Case]:
    name, batch = models.L14, 4 if tiny else 64
    planned = []
    for contender, seconds in ((OURS, 30), (EAGER, 6), (COMPILED, 35)):
        for ours_is, theirs_is, words in PRECISIONS:
            run = functools.partial(_run, name, contender, ours_is, theirs_is, tiny)
            about = {"kind": "images", "model": name, "dtype": words}
            what = f"{models.label(name, tiny)} images, {words}"
            planned.append(Case(what, contender, run, batch, seconds=seconds, about=about))
    return planned


def _run(
    name: str, contender: str, precision: str, theirs: str, tiny: bool, batch: int | None
) -> dict[str, Any]:
    assert batch is not None
    pixels = models.pixels_of(models.config_of(name, tiny), batch)
    turns = TINY if tiny else {}

    def make() -> Contender:
        variant = ours.Variant("float32", precision)
        return ours.on_device(OURS, models.model_of(name, tiny), variant, pixels)

    base = keep.once(("float32", precision, batch), make)
    if contender == OURS:
        return alone(base, UNIT, **turns)
    from benchmarks.accelerator import peers

    with peers.float32_precision(theirs):
        peer = peers_of_images.contender_of(name, contender, pixels, "float32", tiny, theirs)
        return beside(base, peer, UNIT, **turns)
