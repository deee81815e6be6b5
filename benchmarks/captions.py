"""Captions as people write them, made up: benchmarks need some thousands that anybody may have."""

import random

_ADJECTIVES = """red blue old young small large wooden modern vintage happy beautiful white black
green colorful sunny snowy empty traditional famous handmade elegant rustic golden""".split()
_NOUNS = """woman man dog cat horse bicycle boat car house bridge church flower bird tree train
street table chair dress cake guitar mountain river child couple player actor building garden
kitchen logo pattern background sunset beach portrait poster wedding ring bag shoes watch""".split()
_PLACES = """park city forest kitchen museum field market studio living-room harbor desert stadium
village office street lake""".split()
_TAILS = (
    "in the {p}",
    "with a {a} {n}",
    "on a {a} {n}",
    "next to the {n}",
    "and {n}",
    ", {p} view",
    "at {w}",
    "for {n} and {n}",
    "by {w} {w}",
    "- stock photo",
    ", {y}",
    "isolated on white background",
)
_NAMES = """Paris London Smith Maria Tokyo Johnson Berlin Anna California Rossi Sydney Miller
Kerala Toronto Garcia""".split()


def captions(number: int, seed: int = 0) -> list[str]:
    """Phrases of lognormally many words, about as many as captions on the web have."""
    rng = random.Random(seed)

    def filled(template: str) -> str:
        words = {
            "a": rng.choice(_ADJECTIVES),
            "n": rng.choice(_NOUNS),
            "p": rng.choice(_PLACES),
            "w": rng.choice(_NAMES),
            "y": rng.randint(1900, 2025),
        }
        return template.format(**words)

    def caption() -> str:
        target = min(45, rng.lognormvariate(2.05, 0.5))
        text = filled(
            rng.choice(("{a} {n}", "a {a} {n}", "the {n}", "{w} {n}", "a photo of a {n}"))
        )
        while len(text.split()) < target:
            text += f" {filled(rng.choice(_TAILS))}"
        return text.replace(" ,", ",")

    return [caption() for _ in range(number)]
