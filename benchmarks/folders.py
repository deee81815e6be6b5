"""Pixels and ids of one folder by two rules: OpenAI's, of training, and transformers' own.

Ours by each name equal the library's to the bit (tests/test_preprocess_families.py,
tests/test_tokenizer_families.py); here is how much the two differ from each other.

Run: python benchmarks/folders.py --out benchmarks/results/folders.md
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import report
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clip_jax.model_tokenizer import Tokenizer  # noqa: E402
from clip_jax.preprocess import Preprocess  # noqa: E402
from clip_jax.preprocess_huggingface import HuggingFacePreprocess  # noqa: E402

_MODES = ("RGB", "L", "P", "1", "LA", "RGBA")
_TEXTS = {
    "plain ASCII": ["a photo of a cat.", "two dogs, one ball", "the Eiffel Tower at night"],
    "accents": ["un café à la crème", "Škoda in Kraków", "niño con sombrero"],
    "curly quotes": ["a dog’s “best” friend", "it’s here"],
    "HTML entities": ["cats &amp; dogs", "5 &lt; 7", "caf&eacute;"],
    "full width, ligatures": ["ＡＢＣ", "ﬁne ﬂowers"],
    "mojibake": ["schÃ¶n", "itâ€™s"],
    "control characters": ["a\x00b", "\ufeffa cat"],
    "Greek final sigma": ["ΟΔΟΣ"],
}


def _smooth(size: tuple[int, int], mode: str, rng: np.random.Generator) -> Image.Image:
    """A picture with shapes in it, not noise, in any of the modes."""
    coarse = rng.integers(0, 256, (9, 12, 4), np.uint8)
    picture = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    if mode in ("P", "1"):
        return picture.convert("RGB").convert(mode)
    return picture.convert(mode)


def _pixels(n: int) -> str:
    rng, rows = np.random.default_rng(0), []
    for mode in _MODES:
        different, most = [], 0
        for _ in range(60):
            size = tuple(int(side) for side in rng.integers(n, 3 * n, 2))
            image = _smooth(size, mode, rng)
            ours, theirs = (kind(n).pixels(image) for kind in (Preprocess, HuggingFacePreprocess))
            off = np.abs(ours.astype(int) - theirs.astype(int))
            different.append((off > 0).mean())
            most = max(most, int(off.max()))
        whole = sum(share == 0 for share in different)
        rows.append((mode, f"{whole} of 60", f"{100 * np.mean(different):.1f}%", most))
    heading = ["mode", "pictures that are equal", "values that differ", "most, of 255"]
    return report.table(rows, heading)


def _ids() -> str:
    rows = []
    for kind, texts in _TEXTS.items():
        ours, theirs = (Tokenizer(77, rules)(texts) for rules in ("openai", "huggingface"))
        equal = (ours == theirs).all(axis=1).sum()
        rows.append((kind, f"{equal} of {len(texts)}", repr(texts[0])))
    return report.table(rows, ["texts", "rows that are equal", "for example"])


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report.write(
        options.out,
        f"""# Pixels and ids of transformers' folders

{report.header()}

`load(...)` and `load_tokenizer(...)` make pixels and ids by OpenAI's rules, with which the weights
were trained; with `preprocessing="huggingface"` by those of transformers (its PIL image processor
and its fast tokenizer). Each equals its own library to the bit; here they are compared with each
other.

## Pixels

60 pictures of each mode with smooth shapes, 224 to 672 pixels a side, for a model of 224. Pictures
of which a part is transparent in LA and RGBA.

{_pixels(224)}

## Ids

{_ids()}
""",
    )


if __name__ == "__main__":
    main()
