"""Text and JSON records of a user's file, each record with the place it stands in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError

JSON_SPACE = re.compile(r"[ \t\n\r]*")
SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Record:
    """One JSON object of a file and its place, such as `data.jsonl, line 3`."""

    fields: dict[str, object]
    where: str

    def text(self, name: str) -> str:
        """The text of a field. Raises DataError where it is absent, empty or no text."""
        return self.filled(self.value(name), f'"{name}"')

    def text_or_empty(self, name: str) -> str:
        """The text of a field that may be absent, null or empty. Raises DataError for others."""
        value = self.fields.get(name)
        return "" if value is None else self.checked(value, f'"{name}"')

    def value(self, name: str) -> object:
        """The value of a field. Raises DataError naming the fields that are there instead."""
        if name not in self.fields:
            raise self.lacks(f'field "{name}"')
        return self.fields[name]

    def filled(self, value: object, name: str) -> str:
        """The value, if it is text of more than white space. Raises DataError calling it `name`."""
        text = self.checked(value, name)
        if not text.strip():
            raise self.fault(f"{name} is empty")
        return text

    def checked(self, value: object, name: str) -> str:
        """The value, if it is text that UTF-8 can hold. Raises DataError calling it `name`."""
        if not isinstance(value, str):
            raise self.fault(f"{name} is {_kind(value)}, not text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fault(
                f"{name} holds half of a surrogate pair, which is no character"
            ) from error
        return value

    def lacks(self, what: str) -> DataError:
        """The error for a field that is not there."""
        there = shown(", ".join(self.fields)) if self.fields else "none"
        return self.fault(f"no {what}; the fields are {there}")

    def fault(self, what: str) -> DataError:
        """An error at this record's place."""
        return DataError(f"{self.where}: {what}")


def shown(text: str) -> str:
    """Text of a user's file for an error: short, on one line, and fit for any terminal."""
    short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


def read_text(path: Path, formats: str) -> str:
    """The text of a UTF-8 file without a byte order mark.

    Raises DataError where it is missing, unreadable, empty or not UTF-8, saying which formats
    would do.
    """
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give {formats}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; "
            f"give {formats}, saved as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give {formats}") from error
    if not text.strip():
        raise DataError(f"{path} is empty; give {formats}")
    return text


def read_json_records(path: Path, formats: str) -> list[Record]:
    """The objects of a JSON list, or of JSONL with one object a line; blank lines are skipped.

    Which of the two it is shows in the first character, whatever the file is called.
    Raises DataError naming the line of what is not JSON and the record that is no object.
    """
    text = read_text(path, formats)
    if text.lstrip()[0] not in "[{":
        raise DataError(f"{path} is neither a JSON list nor JSONL; give {formats}")
    values = _list_values if text.lstrip()[0] == "[" else _line_values
    records = []
    for value, place in values(text, path):
        if not isinstance(value, dict):
            raise DataError(f"{path}, {place}: the record is {_kind(value)}, not an object")
        records.append(Record(value, f"{path}, {place}"))
    if not records:
        raise DataError(f"{path} holds no record; give {formats}")
    return records


def _line_values(text: str, path: Path) -> Iterator[tuple[object, str]]:
    # Not splitlines: JSON may hold U+2028 and other line ends that are none in a file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), f"line {number}"
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: not JSON: {_reason(error)}; "
                    "a file that is no list holds one whole record a line"
                ) from error


def _list_values(text: str, path: Path) -> Iterator[tuple[object, str]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    # Decoded once more, one by one, because only that tells where each record begins.
    decoder = json.JSONDecoder()
    at = _after_space(text, text.index("[") + 1)
    line, counted_to = 1, 0
    for number, value in enumerate(values, start=1):
        line, counted_to = line + text.count("\n", counted_to, at), at
        yield value, f"record {number}, line {line}"
        _, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + 1)  # behind the comma


def _after_space(text: str, at: int) -> int:
    found = JSON_SPACE.match(text, at)
    return found.end() if found else at


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"
