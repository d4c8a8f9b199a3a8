"""Reading documents from what a user has: text, a folder, JSON, JSONL, Parquet or a table."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from llmkit.data.folders import JSONL_SUFFIXES, source_files
from llmkit.data.hub import hub_texts, is_on_hub
from llmkit.errors import ConfigError, DataError
from llmkit.files import cannot_read
from llmkit.records.csv_tables import column_named, columns, is_table, read_rows
from llmkit.records.json_records import Record, is_json, json_records, reason
from llmkit.records.text_files import (
    AS_IT_COMES,
    JSON_SUFFIXES,
    Reading,
    decoded,
    not_in_encoding,
    refuse_other_kinds,
)
from llmkit.tokenizer import END_OF_TEXT, safe_cut, safe_pieces

LONG_TEXT = 1 << 25  # bytes; a longer text file is never in memory as a whole
CHUNK = 1 << 20  # bytes of it read at a time
PARQUET_MAGIC = b"PAR1"
PARQUET_ROWS = 1024  # in memory at a time
FORMATS = 'plain text, or JSON or JSONL records with a "text" field'


class Piece(NamedTuple):
    """A stretch of a document, cut where the tokenizer cuts too."""

    text: str
    ends: bool  # whether its document ends with it


def read_documents(source: Path, reading: Reading = AS_IT_COMES) -> Iterator[str]:
    """Documents of a source, in a fixed order.

    A text file is split into documents at each <|endoftext|>. Of JSON and JSONL each record's
    `text` is one, or the field that `reading` names; of a table each cell of the column that it
    names, of Parquet `text` or that column. Content tells which of these a file is. Raises
    DataError naming the file and line of what cannot be read.
    """
    for file in source_files(source):
        yield from (text for text in _documents(file, reading) if text.strip())


def read_pieces(sources: Sequence[Path], reading: Reading = AS_IT_COMES) -> Iterator[Piece]:
    """The documents of all sources in pieces, so that no text file has to fit into memory."""
    for source in sources:
        if is_on_hub(source):
            yield from _pieces(hub_texts(source, reading.text_column or "text"))
            continue
        for file in source_files(source):
            if _is_long_text(file, reading):
                yield from _streamed(file)
            else:
                yield from _pieces(_documents(file, reading))


def _pieces(texts: Iterable[str]) -> Iterator[Piece]:
    for text in texts:
        if text.strip():
            *inner, last = safe_pieces(text)
            yield from (Piece(piece, False) for piece in inner)
            yield Piece(last, True)


def _documents(file: Path, reading: Reading) -> Iterator[str]:
    if _starts_with(file, PARQUET_MAGIC):
        yield from _parquet_texts(file, reading.text_column or "text")
        return
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
        raise record.lacks('field "text"', "; choose one with --text-column")
    return record.checked(record.value(name or "text"), f'"{name or "text"}"')


def _cells(text: str, file: Path, reading: Reading) -> Iterator[str]:
    header, *below = read_rows(text, file, reading.delimiter)
    if reading.text_column is None:
        raise DataError(
            f"{file} is a table with columns {columns(header)}; choose the text column with "
            "--text-column, or save the text as .txt without tabs, or as JSONL"
        )
    place, is_named = column_named(reading.text_column, header, file)
    yield from (row.cells[place] for row in (below if is_named else [header, *below]))


def _is_long_text(file: Path, reading: Reading) -> bool:
    """Whether a file is plain text in UTF-8 and too long to be read at once."""
    suffix = file.suffix.lower()
    if reading.encoding != "utf-8" or reading.delimiter or suffix in JSON_SUFFIXES:
        return False
    try:
        if file.stat().st_size <= LONG_TEXT:
            return False
        with file.open("rb") as opened:
            start = opened.read(CHUNK)
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error
    if start.startswith(PARQUET_MAGIC):
        return False
    refuse_other_kinds(start, file)
    text = start.decode(errors="ignore").removeprefix("\ufeff")
    lines = text[: text.rfind("\n") + 1]  # the last line may be cut
    return not text.lstrip().startswith(("[", "{")) and not is_table(lines, file)


def _streamed(file: Path) -> Iterator[Piece]:
    """Documents of a long text file, read in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    text, begun, n_lines = "", False, 1  # begun: pieces of this document were given before

    def pieces(stretch: str, ends: bool) -> Iterator[Piece]:
        nonlocal begun
        if begun or stretch.strip():  # a blank document is none
            *inner, last = safe_pieces(stretch)
            yield from (Piece(piece, False) for piece in inner)
            yield Piece(last, ends)
            begun = not ends

    try:
        with file.open("rb") as opened:
            while content := opened.read(CHUNK):
                chunk = decoder.decode(content)
                *ended, text = (text + chunk).split(END_OF_TEXT)
                for document in ended:
                    yield from pieces(document, True)
                if (cut := safe_cut(text, len(text) // 2)) and text[:cut].strip():
                    yield from pieces(text[:cut], False)
                    text = text[cut:]
                n_lines += chunk.count("\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_in_encoding(file, "utf-8", error, n_lines) from error
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error
    yield from pieces(text, True)


def _parquet_texts(file: Path, column: str) -> Iterator[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(f"{file} needs pyarrow: pip install 'llmkit[parquet]'") from error
    try:
        with parquet.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            if column not in names:
                raise DataError(
                    f"{file} has no column {column!r} (it has {', '.join(names)}); "
                    "choose one with --text-column"
                )
            batches = opened.iter_batches(PARQUET_ROWS, columns=[column])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for row, value in enumerate(values, start=1):
                if not isinstance(value, str):
                    kind = type(value).__name__
                    raise DataError(f"{file}, row {row}: {column!r} is {kind}, not text")
                yield value
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} is not a Parquet file: {error}") from error


def _starts_with(file: Path, magic: bytes) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(magic)) == magic
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error


def _is_long_jsonl(file: Path) -> bool:
    """Whether a file has several JSON objects, one a line: it is then read line by line."""
    try:
        with file.open("rb") as lines:
            if not lines.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                return False
            first = list(islice((line for line in lines if line.strip()), 2))
    except OSError as error:
        raise DataError(cannot_read(file, error)) from error
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
        raise DataError(cannot_read(file, error)) from error


def _jsonl_record(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON: {reason(error)}") from error
    if not isinstance(record, dict):
        raise DataError(f'{where}: expected an object such as {{"text": "..."}}')
    return Record(record, where)
