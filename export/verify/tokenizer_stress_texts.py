"""Texts on which tokenizers that are not quite the same tend to differ."""

from __future__ import annotations

import random
import sys
import unicodedata
from functools import cache

from llmkit.tokenizer import END_OF_TEXT

HARD_TEXTS: tuple[str, ...] = (
    # words, contractions, cases
    "Hello world",
    "It's they're I'VE we'll you'd I'm don't 'tis rock'n'roll DON'T",
    "CamelCase snake_case kebab-case UPPER lower Title",
    # digits and punctuation
    "3.14159 1,000,000 0x1F 2026-11-20 12:34:56 ½ ² ٣ Ⅷ",
    "!!! ??? ... --- === *** ((nested [brackets {here}])) <tag/> \"q\" 'q' `q` …—–",
    # white space
    " leading",
    "trailing ",
    "two  spaces   three    four",
    "tabs\t\tand\nnew\n\nlines\r\nand\r\n\r\nreturns",
    "\n\n\n   \n\t\n",
    "non-breaking\u00a0space, em\u2003space, ideographic\u3000space",
    "zero\u200bwidth, line\u2028end",
    "next\u0085line vertical\x0btab form\x0cfeed unit\x1fseparator",
    "   ",
    # code
    "def f(x: int) -> int:\n    return x ** 2  # square\n\n\nif __name__ == '__main__':\n\tf(2)\n",
    'for (int i = 0; i < n; ++i) { printf("%d\\n", a[i]); }',
    '{"key": [1, 2.5e-3, null, true], "nested": {"a": "b"}}',
    # scripts
    "Ünïcödé façade naïve Ærøskøbing Straße ﬁ ǅ",
    "Привет мир, как дела? Їжак",
    "こんにちは世界。漢字とカタカナ 你好,世界 안녕하세요",
    "שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก",
    "e\u0301 combining vs é composed; Z\u0351\u036b\u0343a\u0321lgo",
    # emoji and characters of four bytes
    "😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 🂡",
    # control characters and noncharacters
    "nul\x00inside bell\x07 escape\x1b[31m delete\x7f bom\ufeff replacement\ufffd private\ue000",
    # the text of special tokens is text
    f"before {END_OF_TEXT} after {END_OF_TEXT}{END_OF_TEXT}",
    "<|im_start|>user\nhi<|im_end|> <s></s> [INST] <unk> <pad>",
    # long runs
    "a" * 300,
    "ab" * 200 + " " * 100 + "\n" * 50,
    "é" * 100 + "…" * 50 + "🙂" * 30,
    # every character of one and two bytes
    "".join(chr(code) for code in range(0x80)),
    "".join(chr(code) for code in range(0x80, 0x800)),
    *(chr(code) for code in range(0x100)),
)

LONG_RUN = 100_000  # characters
_RUN_CHARACTERS = (
    "a",
    "A",
    "7",
    " ",
    "\n",
    "!",
    "é",
    "中",
    "🙂",
    "\u0301",
    "\0",
    "ab",
    " a",
    "\r\n",
)

# Where splits turn: white space, contractions, digits of several kinds, punctuation, marks,
# joiners, line ends, control characters, and the text of special tokens.
_PIECES = (
    *(" ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85"),
    *("'s", "'LL", "'re", "'", "’s", "1", "42", "²", "٣", "½", "Ⅷ", "!", "...", "_", "-", "@", "/"),
    *(
        "\u0301",
        "\u0308\u0323",
        "\u200d",
        "\ufe0f",
        "\u200b",
        "\u200f",
        "\ufeff",
        "\0",
        "\x1b",
        "\x7f",
    ),
    *("a", "the", " The", "é", "中", "か", "한", "ж", "ש", "م", "ह", "😀", "👍🏽", "🇩🇪"),
    *(END_OF_TEXT, "<|", "|>", "<|im_end|>"),
)


def fuzzed_texts(count: int, seed: int = 0) -> list[str]:
    """Random mixtures of scripts, white space, digits, marks, emoji, runs and control characters.

    A seed gives the same texts everywhere: the characters are those of Unicode 3.2, which every
    Python knows. Libraries disagree on what newer characters are (docs/decisions.md).
    """
    draw = random.Random(seed)
    return ["".join(_fuzzed_pieces(draw)) for _ in range(count)]


def long_runs() -> list[str]:
    """Texts of 100,000 characters of one kind."""
    return [(run * LONG_RUN)[:LONG_RUN] for run in _RUN_CHARACTERS]


def _fuzzed_pieces(draw: random.Random) -> list[str]:
    pieces = []
    for _ in range(draw.randrange(1, 24)):
        kind = draw.random()
        if kind < 0.45:
            piece = draw.choice(_PIECES)
        elif kind < 0.75:  # neighbours in the table of characters are of one script
            start = draw.randrange(len(_characters()))
            piece = "".join(_characters()[start : start + draw.randrange(1, 8)])
        elif kind < 0.95:
            piece = draw.choice(_characters())
        else:
            piece = draw.choice((draw.choice(_PIECES), draw.choice(_characters())))
            piece *= draw.randrange(2, 80)
        pieces.append(piece)
    return pieces


@cache
def _characters() -> list[str]:
    """Every character that Unicode 3.2 assigned."""
    category = unicodedata.ucd_3_2_0.category
    everything = map(chr, range(sys.maxunicode + 1))
    return [character for character in everything if category(character) not in ("Cn", "Cs", "Co")]
