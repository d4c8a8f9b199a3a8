"""Reading documents from what a user has: a text file, a folder, JSON, JSONL or a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from llmkit.console import say
from llmkit.data.json_records import Record, is_json, json_records
from llmkit.data.tables import column_named, columns, is_table, read_rows
from llmkit.data.text_files import AS_IT_COMES, Reading, decoded
from llmkit.errors import DataError
from llmkit.tokenizer import END_OF_TEXT

TEXT_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
FORMATS = 'text, or JSON or JSONL records with a "text"'

# What programs write beside a user's own text. Names that begin with a dot are such too.
GENERATED = (
    "__MACOSX",
    "__pycache__",
    "node_modules",
    "site-packages",
    "$RECYCLE.BIN",
    "System Volume Information",
    "@eaDir",
)
VENV_FILE = "pyvenv.cfg"  # in every virtual environment, whatever it is called
SHOWN_NAMES = 3


def source_files(source: Path) -> list[Path]:
    """The files that `source` names: itself, or all text and JSONL files below a folder, sorted.

    Hidden and generated files of a folder are left out, and links to folders are followed once;
    `note_left_out` tells. Raises DataError where there is no file.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give a text file, a folder or a JSONL file")
    files = sorted(_Folder(source).files)
    if not files:
        raise DataError(f"{source} holds no {', '.join(TEXT_SUFFIXES + JSONL_SUFFIXES)} file")
    return files


def note_left_out(source: Path) -> None:
    """Say what of a folder is not read: hidden or generated files, links that lead nowhere new."""
    if not source.is_dir():
        return
    found = _Folder(source, into_hidden=True)
    for paths, one, several, reason in (
        (found.left_out, "text file", "text files", "hidden or written by programs"),
        (found.links, "link", "links", "its target is missing, or read already"),
    ):
        if paths:
            names = ", ".join(str(path.relative_to(source)) for path in paths[:SHOWN_NAMES])
            more = ", ..." * (len(paths) > SHOWN_NAMES)
            what = one if len(paths) == 1 else several
            say(f"{source}: {len(paths)} {what} left out: {reason} ({names}{more})")


def read_documents(source: Path, reading: Reading = AS_IT_COMES) -> Iterator[str]:
    """Documents of a source, in a fixed order.

    A text file is split into documents at each <|endoftext|>. Of JSON and JSONL each record's
    `text` is one, or the field that `reading` names; of a table each cell of the column that it
    names. Content tells which of these a file is. Raises DataError naming the file and line of
    what cannot be read.
    """
    for file in source_files(source):
        yield from (text for text in _documents(file, reading) if text.strip())


def _documents(file: Path, reading: Reading) -> Iterator[str]:
    if reading.encoding == "utf-8" and _is_long_jsonl(file):
        records: Iterator[Record] = _jsonl_records(file)
    else:
        text = decoded(file, reading.encoding)
        if not text.strip():
            return
        if is_table(text, file, reading.delimiter) and not is_json(text, file):
            yield from _cells(text, file, reading)
            return
        if not is_json(text, file):
            yield from text.split(END_OF_TEXT)
            return
        bare = reading.text_column or "text"
        records = iter(json_records(text, file, FORMATS, bare))
    for record in records:
        yield _field(record, reading.text_column)


def _field(record: Record, name: str | None) -> str:
    if name is None and "text" not in record.fields:
        raise record.lacks('field "text"', "; choose another with --text-column")
    return record.checked(record.value(name or "text"), f'"{name or "text"}"')


def _cells(text: str, file: Path, reading: Reading) -> Iterator[str]:
    header, *below = read_rows(text, file, reading.delimiter)
    if reading.text_column is None:
        raise DataError(
            f"{file} is a table with the columns {columns(header)}; choose the one to train on "
            "with --text-column, or save its text as .txt or JSONL"
        )
    place, is_named = column_named(reading.text_column, header, file)
    yield from (row.cells[place] for row in (below if is_named else [header, *below]))


def _is_long_jsonl(file: Path) -> bool:
    """Whether a file has several JSON objects, one a line: it is then read line by line."""
    try:
        with file.open("rb") as lines:
            if not lines.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return False
            first = list(islice((line for line in lines if line.strip()), 2))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    # A file that is called JSONL is meant as such, and a fault in its second line gets its line.
    telling = first[:1] if file.suffix.lower() in JSONL_SUFFIXES else first
    return len(first) == 2 and all(map(_is_object, telling))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.removeprefix(b"\xef\xbb\xbf")), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl_records(file: Path) -> Iterator[Record]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _jsonl_record(line, f"{file}, line {number}")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _jsonl_record(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f'{where}: no object; each line must be {{"text": "..."}}')
    return Record(record, where)


# --- folders --------------------------------------------------------------------------------


@dataclass
class _Folder:
    """What lies below a folder: links to folders are followed, but nothing is looked at twice."""

    root: Path
    into_hidden: bool = False  # only to count what is left out
    files: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)  # text that is hidden or generated
    links: list[Path] = field(default_factory=list)  # to nothing, or to what is read already
    _seen: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        to_follow = self._walk(self.root, hidden=False)
        for link in to_follow:  # after the folders themselves; grows while links lead to links
            target = link.resolve()
            if target in self._seen or self.root.resolve().is_relative_to(target):
                self.links.append(link)
            else:
                to_follow += self._walk(link, hidden=False)

    def _walk(self, folder: Path, *, hidden: bool) -> list[Path]:
        """Take in a folder; returns the links to folders in it."""
        if not hidden:
            self._seen.add(folder.resolve())
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise DataError(f"cannot read {folder}: {error.strerror}") from error
        to_follow = []
        for path in paths:
            left_out = hidden or _is_generated(path)
            if path.is_dir():
                if left_out and not self.into_hidden:
                    continue
                if path.is_symlink():
                    to_follow += [] if left_out else [path]
                elif path.resolve() not in self._seen:
                    to_follow += self._walk(path, hidden=left_out)
            elif path.is_symlink() and not path.exists():
                self.links += [] if left_out else [path]
            elif path.suffix.lower() in TEXT_SUFFIXES + JSONL_SUFFIXES and path.is_file():
                (self.left_out if left_out else self.files).append(path)
        return to_follow


def _is_generated(path: Path) -> bool:
    name = path.name
    return (
        name.startswith(".")
        or name in GENERATED
        or name.endswith((".egg-info", ".dist-info"))
        or (path / VENV_FILE).is_file()
    )
