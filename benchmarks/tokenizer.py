"""Tokenizer against the reference: speed on captions never seen before, equality on 100,000 texts.

Run: python benchmarks/tokenizer.py --out benchmarks/results/tokenizer.md
Expect: a ratio of 5 or more, 0 differences.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import clip_jax.tokenizer as ours  # noqa: E402
from tests import reference  # noqa: E402

_SUBJECTS = """woman man child dog cat horse bicycle sailboat tractor lighthouse bridge cathedral
sofa teapot violin mushroom heron beetle motorcycle skyscraper waterfall glacier vineyard
sculpture mural poster manuscript locket dashboard keyboard sandwich croissant dumpling
cardigan sneaker helmet telescope harbour orchard greenhouse carousel scarecrow hedgehog walrus
otter kestrel""".split()
_ADJECTIVES = """red turquoise rusty weathered vintage minimalist blurry sunlit snowy crowded empty
handmade wooden porcelain striped embroidered futuristic baroque miniature gigantic translucent
monochrome overexposed foggy abandoned freshly-painted hand-drawn black-and-white award-winning
""".split()
_PLACES = """beach alley rooftop meadow subway kitchen museum workshop stadium monastery canyon
marketplace balcony laboratory ballroom campsite""".split()
_TEMPLATES = [
    "a photo of a {a} {s} in the {p} near {N}, {y}",
    "{N} {N}'s {a} {s} - {b} x {b} cm (no. {b})",
    "The {a}, {a} {s} that {N} bought for ${b}.{c} at the {p}!",
    "{s} and {s} on a {p}, by {N} {N} | stock image {b}{b}",
    "Close-up of {m} {s}s; it's {a} & they'll {m} the {p} #{m}",
    "{N}: “{a} {s}”, {y} – {M} {p}",
    "IMG_{b}{b}.JPG {m} {m} {a} {s} {M} collection",
    "two {s}s don't fit in one {a} {p}, says {N} of {N} ({y})",
    "café {N}, {a} {p} in {M}",
]
_SYLLABLES = """ba be bri ca che co da del do el en fa fen ga gri ha hol il ka kir la lo lun ma mer
mi na nor o pa pel qui ra ros sa sen shi ta thi tor u va vel wen xi ya zo""".split()


def caption(rng: random.Random) -> str:
    """A caption of 8 to 15 words, a third of them invented names, misspellings or numbers."""

    def misspelled() -> str:
        letters = list(rng.choice(_SUBJECTS + _ADJECTIVES + _PLACES))
        i = rng.randrange(len(letters))
        letters[i] = rng.choice(["", letters[i] * 2, rng.choice("aeioustrnl")])
        return "".join(letters)

    def name() -> str:
        return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4))).capitalize()

    makers: dict[str, Callable[[], object]] = {
        "a": lambda: rng.choice(_ADJECTIVES),
        "s": lambda: rng.choice(_SUBJECTS),
        "p": lambda: rng.choice(_PLACES),
        "m": misspelled,
        "M": lambda: misspelled().title(),
        "N": name,
        "y": lambda: rng.randint(1850, 2025),
        "b": lambda: rng.randint(1, 9999),
        "c": lambda: f"{rng.randrange(100):02}",
    }
    parts = rng.choice(_TEMPLATES).split("{")
    return parts[0] + "".join(f"{makers[part[0]]()}{part[2:]}" for part in parts[1:])


_FRAGMENTS = """<|startoftext|> <|endoftext|> <|StartOfText|> <|ENDOFTEXT|> <|\u017ftartoftext|>
<|endoftext <|startoftext|>> startoftext|> 's 't 're 've 'm 'll 'd 'S 'T 'RE 'll's '\u017f n't ''s
\u2019s &amp; &amp;amp; &amp;amp;amp; &lt; &gt; &lt;|endoftext|&gt; &quot; &#39; &#x27; &nbsp;
&#160; &#133; &#11; &#28; &NewLine; &Tab; &eacute; &EACUTE; &hellip; &notit; &#xD800; &#0;
&#x10FFFF; &#1114112; &; &# &#x <b> </w> </w>a caf\xe9 na\xefve \xc3\xa9 \xc3\xa0 \xc3 \xc2\xa0
\xe2\u20ac\u2122 \xe2\u20ac\u201c \xf0\u0178\u02dc\u20ac \xd0\u203a\xd0\xb5 l\xe2\u20ac\u2122 \u0130
\u0131 I\u0307 \u017f \u212a \u212b \xdf \u1e9e \u03a3 \u03c2 \u01c5 \ufb01 \ufb03 \u0133 \uff21
\uff11 \uffe5 \xbd \xb2 \u2167 \u0663 \u0e51 \u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4
\u0928\u092e\u0938\u094d\u0924\u0947 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd
\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f e\u0301
\u0301 \ud800 \udc00 \ud83d\ude00 \ufffd \ufeff \u200b \u200d \xad \u180e \ufdd0 \U000e0001
\u201cx\u201d \u2018x\u2019 \u2026 \u2013 \u2014 -- ... !!! ?! #tag @user 12345 3.14 1,000 a1b2
don't they'll I'M it's John's http://a.b/c?d=e&f=g \x1b[31m""".split()
_SPACES = (
    " \t\n\r\f\v\x00\x07\x1c\x1d\x1e\x1f\x7f\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
)


def text(rng: random.Random) -> str:
    """Anything: fragments that have made tokenizers differ, and characters of all of Unicode."""

    def character() -> str:
        top = rng.choice((0x80, 0x100, 0x250, 0x600, 0x3100, 0x10000, 0x110000))
        return chr(rng.randrange(top))

    def piece() -> str:
        kind = rng.randrange(9)
        if kind < 3:
            return rng.choice(_FRAGMENTS)
        if kind == 3:
            return rng.choice(_SPACES)
        if kind == 4:
            return "".join(character() for _ in range(rng.randint(1, 6)))
        if kind == 5:
            return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 12)))
        if kind == 6:
            return "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randint(1, 8)))
        if kind == 7:
            alphabet = "\xe0\xe2\xe9\xef\xf1\xf3\xfc\xff\u2013\u2014 abYZ.,'"
            return "".join(rng.choices(alphabet, k=rng.randint(1, 8)))
        return rng.choice(("a", "ab", "!", "1", "\xe9")) * rng.randint(1, 80)

    glue = rng.choice(("", "", " ", rng.choice(_SPACES)))
    return glue.join(piece() for _ in range(rng.randint(0, 8)))


def _speed(rounds: int, number: int) -> str:
    contenders: dict[str, Callable[[list[str]], object]] = {
        "clip_jax": lambda texts: ours.tokenize(texts, truncate=True),
        "reference": lambda texts: reference.clip().tokenize(texts, truncate=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for tokenize in contenders.values():
        tokenize(["load the tables"])
    rng = random.Random(0)
    for turn in range(rounds):
        captions = [caption(rng) for _ in range(number)]
        for name in sorted(contenders, reverse=turn % 2 == 1):
            start = time.perf_counter()
            contenders[name](captions)
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        ratio = statistics.median(b / a for a, b in zip(taken, seconds["reference"], strict=True))
        rows.append((name, f"{1e6 * median / number:.1f}", f"{number / median:,.0f}", ratio))
    return report.table(rows, ["", "µs a caption", "captions a second", "times the reference"])


def _differences(number: int) -> str:
    rng = random.Random(1)
    different = 0
    for _ in range(number // 1000):
        texts = [text(rng) for _ in range(1000)]
        theirs = reference.clip().tokenize(texts, truncate=True).numpy()
        rows = np.flatnonzero((ours.tokenize(texts, truncate=True) != theirs).any(1))
        for row in rows[:3]:
            print(f"differs: {ascii(texts[row])}", file=sys.stderr)
        different += len(rows)
    return report.table([(number, different)], ["texts compared", "different"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--out")
    options = parser.parse_args()
    examples = "\n".join(f"    {caption(random.Random(seed))}" for seed in range(5))
    report.write(
        options.out,
        f"""# Tokenizer

{report.header()}

## Speed

{options.captions:,} captions a round that neither has seen before, one thread, {options.rounds}
rounds in which the contenders take turns at being first; medians, and the median of the ratios.
Captions come from {len(_TEMPLATES)} templates filled with words from lists, invented names of two
to four syllables, misspelled words and numbers; a ninth has an accented letter, another curly
quotes. Both keep their caches of words from round to round, as a running process does.

{_speed(options.rounds, options.captions)}

For example:

{examples}

## Equality

Random texts of fragments known to be awkward (entities, mojibake, near-literals, case folding,
suffixes), all kinds of white space and control characters, and characters of all of Unicode.

{_differences(options.texts)}

Not measured: several threads, texts in languages other than English.
""",
    )


if __name__ == "__main__":
    main()
