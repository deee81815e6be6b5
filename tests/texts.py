"""Texts that tokenizers make odd ids of."""

import random
import unicodedata

ODD = (
    *("", " ", "   ", "a photo of a cat.", "it's  a DOG's\n life &amp;amp; more", "naïve café ½ ²"),
    *("<|startoftext|>hello<|endoftext|>", "<start_of_text>hello<end_of_text>", "a<|endoftext|>b"),
    *("<|STARTOFTEXT|>x", "!<|EndOfText|>!", "<END_OF_TEXT>", "<start_of_text", "end_of_text>"),
    *(
        "ΑΣ σας ΣΑΣ",
        "İstanbul",
        "ſ's 'ſ 'S 'LL",
        "ﬁne “quotes” ‘x’",
        "ＦＵＬＬ　ｗｉｄｔｈ",
        "漢字かな",
    ),
    *("e\u0301 cafe\u0301", "a\u200bb", "\x00a", "\ufeffbom", "a\u00a0b\u3000c", "x\u0085y\u2028z"),
    *("🙂👩‍👩‍👧", "don't can't we'll", "1234 ٣٤ Ⅷ", "__a_b__", "#hash @at", "a\tb\r\nc\x0bd\x0ce"),
    *("schÃ¶n", "&lt;b&gt; &copy; &#39;", "<|startoftext|", "😀" * 30, "word " * 100, "x" * 400),
)
LETTERS = (
    "abcXYZ 019 .,!?'\"<|>&;_-\n\t\u00a0\u3000éÉßẞſΣςİıǅﬁ½²Ⅷ٣漢か\u0301\u200b\u200d\ufeff😀👩🏽"
    "\x00\x1f\x7f\x85"
)


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    # Of these, all versions of Unicode that libraries were built with say the same.
    old = [chr(i) for i in range(1, 0xD800) if unicodedata.ucd_3_2_0.category(chr(i)) != "Cn"]
    return [
        "".join(
            rng.choice(LETTERS) if rng.random() < 0.9 else rng.choice(old)
            for _ in range(rng.randrange(30))
        )
        for _ in range(count)
    ]
