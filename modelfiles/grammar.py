"""The grammar of an Ollama Modelfile: its text as instructions.

After Ollama's own reader (parser/parser.go), whose messages an error begins with.
"""

from __future__ import annotations

import bisect
import codecs
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from llmkit.errors import ModelfileError
from llmkit.modelfiles.parameters import KINDS
from llmkit.modelfiles.prompt_format import Role
from llmkit.modelfiles.quoting import BLANK, printable, read_value

INSTRUCTIONS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
    "parameter", "message", "requires",
)  # fmt: skip
ROLES: tuple[Role, ...] = get_args(Role)

# Ollama's words.
_COMMAND_ERROR = (
    "command must be one of "
    + ", ".join(f'"{name}"' for name in INSTRUCTIONS[:-1])
    + f', or "{INSTRUCTIONS[-1]}"'
)
ROLE_ERROR = 'message role must be one of "system", "user", or "assistant"'
_NEEDS_VALUE = "must be followed by a space and a value on the same line"
_PROSE_ADVICE = 'put text of several lines between """, start a comment with #'
_COMMENT = re.compile(r"#([^\r\n]*)")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_WORDS = {
    "instruction": re.compile(r"[A-Za-z]*"),
    "parameter": re.compile(r"[A-Za-z0-9_]*"),
    "message": re.compile(r"[A-Za-z]*"),
}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Place:
    """A position in a file; lines and columns count from 1."""

    path: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem in a Modelfile, and what to do about it."""

    level: Level
    place: Place
    message: str
    advice: str

    def __str__(self) -> str:
        return f"{self.place}: {self.level}: {_one_line(f'{self.message}; {self.advice}')}"


class RefusalError(ModelfileError):
    """Ollama refuses this Modelfile; `finding` has the position.

    `others` are what else is wrong, as far as it can be read.
    """

    def __init__(self, line: str, finding: Finding) -> None:
        super().__init__(line)
        self.finding = finding
        self.others: tuple[Finding, ...] = ()


class UnclosedQuoteError(RefusalError):
    """Ollama reads the rest of the file as this value."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name in small letters, and a parameter's name or a message's role.

    `value_at` is where the value begins with its quotes, `text_at` where its text does.
    `dropped` are the characters of the value that Ollama leaves out.
    """

    name: str
    argument: str
    value: str
    dropped: str
    name_at: Place
    argument_at: Place
    value_at: Place
    text_at: Place

    def place(self, index: int) -> Place:
        """Where a character of the value stands; exact where nothing was dropped before it."""
        lines = _LINE_ENDS.split(self.value[:index])
        first = self.text_at.column if len(lines) == 1 else 1
        return Place(self.text_at.path, self.text_at.line + len(lines) - 1, first + len(lines[-1]))


class Source:
    """A Modelfile's text, and where in its file an index into it stands."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self._path = path
        self._starts = [0, *(end.end() for end in _LINE_ENDS.finditer(text))]

    def place(self, index: int) -> Place:
        """The line and column of an index."""
        line = bisect.bisect_right(self._starts, index)
        return Place(self._path, line, index - self._starts[line - 1] + 1)

    def error(self, index: int, message: str, advice: str) -> RefusalError:
        """Ollama's message at the place of an index, with what to do."""
        return refusal(self.place(index), message, advice)


def refusal(
    place: Place, message: str, advice: str, kind: type[RefusalError] = RefusalError
) -> RefusalError:
    """Ollama's message at its place, with what to do, in one line."""
    finding = Finding("error", place, message, advice.lstrip(",; "))
    return kind(_one_line(f"{place}: {message}{advice}"), finding)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def decode(data: bytes) -> str:
    """A file's bytes as Ollama reads them: by byte order mark, else UTF-8.

    What is neither becomes U+FFFD.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    return data.decode("utf-8", errors="replace")


def parts(source: Source) -> Iterator[Instruction | str | RefusalError]:
    """The instructions of a Modelfile, the text of its comments and what Ollama refuses, in order.

    A refused line is passed over, unless it opens quotes that are never closed; of lines of prose
    only the first is reported.
    """
    text, index, advice = source.text, 0, ""
    while index < len(text):
        if text[index] in BLANK:
            index += 1
        elif comment := _COMMENT.match(text, index):
            yield comment[1]
            index = comment.end()
        else:
            try:
                instruction, index = _instruction(source, index)
                advice = ""
                yield instruction
            except RefusalError as refused:
                if not advice == refused.finding.advice == _PROSE_ADVICE:
                    yield refused
                advice = refused.finding.advice
                line_end = _LINE_ENDS.search(text, index)
                if line_end is None or isinstance(refused, UnclosedQuoteError):
                    return
                index = line_end.end()


def _instruction(source: Source, start: int) -> tuple[Instruction, int]:
    # Ollama does not look at an instruction's first character until it has the whole of it, and
    # drops it there if it does not print.
    text = source.text
    end = _word_end("instruction", text, start + 1)
    name = (printable(text[start]) + text[start + 1 : end]).lower()
    if end == len(text):
        raise source.error(end, "unexpected EOF", _command_advice(name))
    if text[end] not in " \t" or name not in INSTRUCTIONS:
        raise source.error(start, _COMMAND_ERROR, _command_advice(name))
    argument_start = value_start = end + 1
    argument = ""
    if name in ("parameter", "message"):
        end = _word_end(name, text, argument_start)
        argument = text[argument_start:end]
        if end == len(text) or text[end] not in " \t":
            what = f"{name.upper()} {argument}".strip()
            raise source.error(end, "unexpected EOF", f"; {what} {_NEEDS_VALUE}")
        if name == "message" and argument not in ROLES:
            raise source.error(argument_start, ROLE_ERROR, nearest(argument, ROLES))
        value_start = end + 1
    while value_start < len(text) and text[value_start] in " \t":
        value_start += 1
    value = read_value(text, value_start)
    if value is None:
        advice, place = _quote_advice(text, value_start), source.place(value_start)
        raise refusal(place, "unexpected EOF", advice, UnclosedQuoteError)
    indices = (start, argument_start, value_start, value_start + len(value.quote))
    places = (source.place(index) for index in indices)
    return Instruction(name, argument, value.text, value.dropped, *places), value.end


def nearest(name: str, known: tuple[str, ...]) -> str:
    """The end of a message: the nearest known name, otherwise all of them."""
    found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean '{found[0]}'?" if found else f"; choose one of: {', '.join(known)}"


def _word_end(kind: str, text: str, start: int) -> int:
    found = _WORDS[kind].match(text, start)
    return found.end() if found else start


def _command_advice(name: str) -> str:
    if name in INSTRUCTIONS:
        return f"; {name.upper()} {_NEEDS_VALUE}"
    if name in KINDS:
        return f"; did you mean 'PARAMETER {name}'?"
    found = difflib.get_close_matches(name, INSTRUCTIONS, n=1, cutoff=0.5)
    if found:
        return f"; did you mean '{found[0].upper()}'?"
    return f"; {_PROSE_ADVICE}"


def _quote_advice(text: str, start: int) -> str:
    quote = '"""' if text.startswith('"""', start) else '"'
    line = _LINE_ENDS.split(text[start:], maxsplit=1)[0]
    if quote in line[len(quote) :]:
        return f"; remove the text after the closing {quote}"
    return f"; close the {quote} with another {quote} at the end of a line"
