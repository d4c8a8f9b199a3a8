"""Text of a user's file: decoding it, and naming what is no text."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import ConfigError, DataError
from llmkit.files import cannot_read

SHOWN_CHARACTERS = 80
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")

# What files of other kinds begin with.
_OTHER_KINDS = {
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx and .epub files are",
    b"\x1f\x8b": "gzip-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"{\\rtf": "an RTF document",
    b"GGUF\x03\0": "a GGUF file",
    b"GGUF\x02\0": "a GGUF file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
}
_BYTE_ORDER_MARKS = {  # the longest first
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_COMMENTS = r"\s*(?:<!--.*?-->\s*)*"
_HTML = re.compile(_COMMENTS + r"(?:<!doctype\s+html|<html|<head|<body)\b", re.I | re.S)
_XML = re.compile(r"\s*<\?xml\b", re.I)
_HTML_SUFFIXES = (".html", ".htm", ".xhtml")
_FIRST_TAG = re.compile(r"\s*<([A-Za-z][\w:.-]*)(?:\s[^<>]*)?>")
_LAST_TAG = re.compile(r"</([A-Za-z][\w:.-]*)>\s*\Z")
_HTML_TAGS = {"a", "article", "div", "h1", "h2", "h3", "li", "main", "ol", "p", "section", "span"}
_HTML_TAGS |= {"table", "ul"}


@dataclass(frozen=True)
class Reading:
    """How a file is read, where the file itself does not tell. Raises ConfigError."""

    text_column: str | None = None  # a name, or a number from 1
    label_column: str | None = None
    delimiter: str | None = None  # one character, or "tab"
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.delimiter in ("tab", "\\t"):
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter.isalnum() or self.delimiter in '\r\n"'
        ):
            raise ConfigError(
                f"delimiter {self.delimiter!r} must be one character such as , ; | or tab"
            )
        try:
            "".encode(self.encoding)
            object.__setattr__(self, "encoding", codecs.lookup(self.encoding).name)
        except LookupError as error:
            raise ConfigError(
                f"unknown encoding {self.encoding!r}; use for example utf-8, latin-1 or cp1252"
            ) from error


AS_IT_COMES = Reading()


def shown(text: str) -> str:
    """Text of a user's file for an error: short, on one line, and fit for any terminal."""
    short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def decoded(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file without a byte order mark.

    Raises DataError where it cannot be read, is a file of another kind (PDF, HTML, an archive),
    or has a byte that the encoding has not, which is named with its line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    refuse_other_kinds(content, path)
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_in_encoding(path, encoding, error) from error
    start = text[:4096]
    if start.count("\0") * 10 > len(start):
        raise DataError(
            f"{path} is binary, or UTF-16 without a byte order mark; save it as UTF-8, or (train, "
            "finetune classify) set --encoding, for example utf-16-le"
        )
    is_page = path.suffix.lower() in _HTML_SUFFIXES and start.lstrip().startswith("<")
    if is_page or _HTML.match(start):
        raise DataError(f"{path} is an HTML page; save its text without tags as .txt")
    if _XML.match(start) or (path.suffix.lower() != ".md" and _is_markup(text)):
        raise DataError(f"{path} is HTML or XML; save its text without tags as .txt")
    return text


def refuse_other_kinds(content: bytes, path: Path) -> None:
    """Raise DataError where a file begins as no text does."""
    for magic, kind in _OTHER_KINDS.items():
        if content.startswith(magic):
            raise DataError(f"{path} is {kind}, not text; save its text as UTF-8")


def not_in_encoding(
    path: Path, encoding: str, error: UnicodeDecodeError, first_line: int = 1
) -> DataError:
    """The error for a byte that the encoding does not have, in bytes that begin at a line."""
    line = first_line + error.object[: error.start].count(b"\n")
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if error.object.startswith(mark))
    return DataError(
        f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not "
        f"{encoding.upper()}; save the file as UTF-8, or (train, finetune classify) set "
        f"--encoding, for example {next(marks, 'latin-1')}"
    )


def _is_markup(text: str) -> bool:
    """Whether a text is one XML element with others in it, or a piece of HTML."""
    first, last = _FIRST_TAG.match(text), _LAST_TAG.search(text[-1024:])
    if first is None or last is None:
        return False
    if {first[1].lower(), last[1].lower()} <= _HTML_TAGS:
        return True
    return first[1] == last[1] and text.count("</") > 1 and text.count(f"<{first[1]}") == 1


def read_text(path: Path, formats: str, encoding: str = "utf-8") -> str:
    """The text of a file that must not be empty.

    Raises DataError as `decoded` does, and where it is missing or empty, saying which formats
    would do.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; give {formats}")
    text = decoded(path, encoding)
    if not text.strip():
        raise DataError(f"{path} is empty; give {formats}")
    return text
