"""A value of a Modelfile: how Ollama reads it, and how to write it so that it reads the same.

There are no escapes. A value is bare to the end of its line, or stands between quotes or triple
quotes and may span lines. It ends at the first line end that has the closing quotes before it,
white space aside; quotes within a line are part of the text. Characters that do not print are
dropped.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from llmkit.errors import ModelfileError

BLANK = " \t\r\n"
_QUOTE, _TRIPLE = '"', '"""'
_LINE_END = re.compile(r"[\r\n]|\Z")


@dataclass(frozen=True)
class Value:
    """A value's text, its quotes, where its line ends, and the characters that Ollama drops."""

    text: str
    quote: str
    end: int
    dropped: str


def read_value(text: str, start: int) -> Value | None:
    """The value that begins at `start`; None if its quotes are never closed."""
    kept: list[str] = []
    dropped: list[str] = []
    quote = None
    while True:
        end = _line_end(text, start)
        line = text[start:end]
        kept.append(printable(line))
        if kept[-1] != line:
            dropped.append("".join(c for c in line if not _prints(c)))
        if quote is None:
            quote = _opening_quote(kept[0].strip(BLANK))
        # Only a line that ends with the quotes can close them: the rest need not be joined.
        if kept[-1].rstrip(BLANK).endswith(quote):
            value = "".join(kept).strip(BLANK)
            if len(value) >= 2 * len(quote):
                unquoted = value[len(quote) : len(value) - len(quote)]
                return Value(unquoted, quote, end, "".join(dropped))
        if end == len(text):
            return None
        kept.append(text[end])
        start = end + 1


def quoted(value: str) -> str:
    """The value as it must be written for Ollama to read back exactly this text.

    Raises ModelfileError where no way of writing does: for a character that Ollama drops, and for
    text of several lines in which every kind of quotes would end too early.
    """
    for character in value:
        if not character.isprintable() and character not in BLANK:
            raise ModelfileError(
                f"a Modelfile cannot hold the character U+{ord(character):04X}, which Ollama drops"
            )
    single, triple = f"{_QUOTE}{value}{_QUOTE}", f"{_TRIPLE}{value}{_TRIPLE}"
    ways = [value, single, triple]
    # Which quotes end a value is plainest where it does not hold them.
    if _QUOTE not in value:
        ways.insert(0, single)
    elif _TRIPLE not in value and not value.endswith(_QUOTE):
        ways.insert(0, triple)
    for way in ways:
        read = read_value(f"{way}\n", 0)
        if read is not None and read.text == value and read.end == len(way):
            return way
    beginning = value if len(value) <= 60 else f"{value[:60]}..."
    raise ModelfileError(
        f"a Modelfile cannot hold {beginning!r}: quotes cannot be escaped; "
        'remove the """ or the quote at the end of a line'
    )


def printable(text: str) -> str:
    """The text without the characters that Ollama drops: all that do not print, but tabs."""
    return text if text.isprintable() else "".join(filter(_prints, text))


def _prints(character: str) -> bool:
    # Ollama's Unicode tables may be newer than Python's: a character that Python does not know
    # is taken for one that prints.
    return character.isprintable() or character == "\t" or unicodedata.category(character) == "Cn"


def _opening_quote(value: str) -> str:
    return next((quote for quote in (_TRIPLE, _QUOTE) if value.startswith(quote)), "")


def _line_end(text: str, start: int) -> int:
    found = _LINE_END.search(text, start)
    return found.start() if found else len(text)
