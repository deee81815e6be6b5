"""Preprocessing against the reference: equality over modes and sizes, and time.

Run: python benchmarks/preprocess.py --out benchmarks/results/preprocess.md
Expect: 0 differences.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import report
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clip_jax.preprocess import Preprocess  # noqa: E402
from tests import reference  # noqa: E402
from tests.pictures import MODES, random_image

_SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (223, 225), (224, 224), (224, 301), (301, 224)]
_SIZES += [(225, 224), (333, 500), (501, 335), (640, 480), (641, 479), (31, 199)]
_EXTREME_SIZES = [(1, 5000), (5000, 1)]  # a billion bytes on the way: RGB only
_MODEL_SIZES = (224, 288, 336)


def _outcome(function, image: Image.Image) -> np.ndarray | None:
    try:
        return np.asarray(function(image))
    except ValueError:
        return None


def _equality() -> str:
    rows = []
    rng = np.random.default_rng(0)
    pairs = [(Preprocess(n), reference.clip().clip._transform(n)) for n in _MODEL_SIZES]
    for mode in MODES:
        different = refused = images = 0
        for size in _SIZES + _EXTREME_SIZES * (mode == "RGB"):
            image = random_image(mode, size, rng)
            for ours, theirs in pairs[:1] if size in _EXTREME_SIZES else pairs:
                ourselves, expected = _outcome(ours, image), _outcome(theirs, image)
                images += 1
                if ourselves is None or expected is None:
                    refused += ourselves is expected
                    different += ourselves is not expected
                else:
                    expected = expected.transpose(1, 2, 0)
                    same = ourselves.dtype == expected.dtype and ourselves.shape == expected.shape
                    different += not (same and ourselves.tobytes() == expected.tobytes())
        rows.append((mode, images, different, refused))
    rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2, 3))))
    return report.table(rows, ["mode", "images", "different", "refused by both"])


def _speed(rounds: int) -> str:
    rng = np.random.default_rng(1)
    ours, theirs = Preprocess(224), reference.clip().clip._transform(224)
    rows = []
    for mode, size in [("RGB", (320, 240)), ("RGB", (640, 480)), ("RGB", (1920, 1080))]:
        image = random_image(mode, size, rng)
        contenders = {"ours": ours, "reference": theirs}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(rounds):
            for name in sorted(contenders, reverse=turn % 2 == 1):
                start = time.perf_counter()
                contenders[name](image)
                seconds[name].append(time.perf_counter() - start)
        milliseconds = [1000 * statistics.median(seconds[name]) for name in contenders]
        pairs = zip(seconds["ours"], seconds["reference"], strict=True)
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append((f"{mode} {size[0]} x {size[1]}", *milliseconds, ratio))
    return report.table(rows, ["image", "clip_jax, ms", "reference, ms", "times the reference"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's advice about transparent palettes, to the reference
    reference.torch().set_num_threads(1)
    report.write(
        options.out,
        f"""# Preprocessing

{report.header()}

## Equality

Images of random pixels in every mode of Pillow; {len(_SIZES)} sizes for models of
{_MODEL_SIZES} pixels, and 1 x 5000 and 5000 x 1 in RGB for {_MODEL_SIZES[0]}; the float32 results
compared byte by byte.

{_equality()}

## Speed

One thread, image already decoded, to 224 pixels; {options.rounds} rounds in which the contenders
take turns at being first; medians, and the median of the ratios.

{_speed(options.rounds)}

Not measured: decoding, several processes.
""",
    )


if __name__ == "__main__":
    main()
