"""Reading documents from what a user has: a text file, a folder of text files, JSONL files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llmkit.errors import DataError
from llmkit.tokenizer import END_OF_TEXT

TEXT_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")


def source_files(source: Path) -> list[Path]:
    """The files that `source` names: itself, or all text and JSONL files below a folder, sorted.

    Raises DataError where there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist; give a text file, a folder or a JSONL file")
    known = TEXT_SUFFIXES + JSONL_SUFFIXES
    files = sorted(
        file for file in source.rglob("*") if file.suffix.lower() in known and file.is_file()
    )
    if not files:
        raise DataError(f"{source} holds no {', '.join(known)} file")
    return files


def read_documents(source: Path) -> Iterator[str]:
    """Documents of a source, in a fixed order.

    A text file is split into documents at each <|endoftext|>; a JSONL line's `text` is one.
    Raises DataError naming the file and line of what cannot be read.
    """
    for file in source_files(source):
        if file.suffix.lower() in JSONL_SUFFIXES:
            yield from _jsonl_documents(file)
        else:
            yield from (text for text in _read_text(file).split(END_OF_TEXT) if text.strip())


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _jsonl_documents(file: Path) -> Iterator[str]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    text = _jsonl_text(line, f"{file}, line {number}")
                    if text.strip():
                        yield text
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _jsonl_text(line: bytes, where: str) -> str:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{where}: no "text" string; each line must be {{"text": "..."}}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair, which is no character") from error
    return text
