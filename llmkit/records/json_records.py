"""JSON records of a user's file, each with the place it stands in."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from llmkit.errors import DataError
from llmkit.records.text_files import JSON_SUFFIXES, shown

JSON_SPACE = re.compile(r"[ \t\n\r]*")
# A list of objects, or an object over several lines: JSON, even if a comma is wrong later.
_JSON_START = re.compile(r"""\s*(?:\[\s*\{\s*"|\{[ \t]*\r?\n\s*"[^"\n]*"\s*:)""")


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
        """The value, if it is text that UTF-8 can hold. Raises DataError calling it `name`.

        Numbers, true and false are the text that a table has for them, and NaN is empty.
        """
        if isinstance(value, int | float):
            value = "" if isinstance(value, float) and math.isnan(value) else str(value)
        if not isinstance(value, str):
            raise self.fault(f"{name}: expected text, found {_kind(value)}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.fault(
                f"{name} contains an unpaired surrogate, which UTF-8 cannot encode"
            ) from error
        return value

    def lacks(self, what: str, advice: str = "") -> DataError:
        """The error for a field that is not there."""
        there = shown(", ".join(self.fields)) if self.fields else "none"
        return self.fault(f"no {what}; found fields: {there}{advice}")

    def fault(self, what: str) -> DataError:
        """An error at this record's place."""
        return DataError(f"{self.where}: {what}")


def is_json(text: str, path: Path) -> bool:
    """Whether a file is JSON or JSONL: by its content, or at least by its name."""
    if path.suffix.lower() in JSON_SUFFIXES:
        return True
    if not text.lstrip().startswith(("[", "{")):
        return False
    if _JSON_START.match(text):
        return True
    lines = [line for line in text.split("\n", 64)[:64] if line.strip()][:2]
    of_objects = all(line.lstrip().startswith("{") and _parses(line) for line in lines)
    return (len(lines) == 2 and of_objects) or _parses(text)


def json_records(text: str, path: Path, formats: str, bare: str | None = None) -> list[Record]:
    """The objects of a JSON list, of JSONL, or of pandas' or Hugging Face's column form.

    Content decides which it is, whatever the file is called. With `bare` a list may also hold
    texts, each the only field, so called, of a record. Raises DataError naming the line of what
    is not JSON and the record that is no object.
    """
    if text.lstrip()[:1] not in ("[", "{"):
        raise DataError(f"{path} is neither JSON nor JSONL; give {formats}")
    records = []
    for value, place in _values(text, path):
        if bare is not None and isinstance(value, str):
            value = {bare: value}
        if not isinstance(value, dict):
            raise DataError(f"{path}, {place}: expected an object, found {_kind(value)}")
        records.append(Record(value, f"{path}, {place}"))
    if not records:
        raise DataError(f"{path} has no records; give {formats}")
    return records


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _values(text: str, path: Path) -> Iterator[tuple[object, str]]:
    """Each record with its place."""
    if text.lstrip().startswith("["):
        yield from _list_values(text, path)
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # several lines, or a fault, which has a line then
        yield from _line_values(text, path)
        return
    records = rows_of_columns(whole)
    if records is None:
        yield whole, "line 1"
    else:
        for number, record in enumerate(records, start=1):
            yield record, f"record {number}"


def rows_of_columns(table: Mapping[str, object]) -> Sequence[object] | None:
    """The rows of a table stored as one object; None where the object is itself a record.

    pandas' to_json writes {"text": {"0": ..., "1": ...}} (columns), {"0": {"text": ...}} (index),
    {"columns": [...], "data": [[...]]} (split) or {"schema": ..., "data": [...]} (table);
    Hugging Face's to_dict gives {"text": [...]}. Others put a list under a name of its own, such as
    {"questions": [{"question": ...}]}.
    """
    data, columns = table.get("data"), table.get("columns")
    if isinstance(data, list):
        if isinstance(columns, list) and all(isinstance(row, list) for row in data):
            return [dict(zip(columns, row, strict=False)) for row in data]
        if all(isinstance(row, dict) for row in data):
            return data
    parts = list(table.values())
    if len(parts) == 1 and _are_records(parts[0]):
        return parts[0]
    if parts and all(isinstance(part, dict) for part in parts):
        if all(name.isdecimal() for name in table):
            return parts
        keys = {key: None for part in parts for key in part}  # type: ignore[attr-defined]
        return [{name: column.get(key) for name, column in table.items()} for key in keys]  # type: ignore[attr-defined]
    if parts and all(isinstance(part, list) for part in parts):
        lists = [part for part in parts if isinstance(part, list)]
        n_rows = {len(part) for part in lists}
        is_chat = any(isinstance(item, dict) for part in lists for item in part)
        if len(n_rows) == 1 and n_rows != {0} and not is_chat:
            return [dict(zip(table, row, strict=True)) for row in zip(*lists, strict=True)]
    return None


def _are_records(value: object) -> TypeGuard[list[object]]:
    """Whether a value is a list of objects that are no messages of a chat."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not {"role", "from"} & item.keys() for item in value)
    )


def _line_values(text: str, path: Path) -> Iterator[tuple[object, str]]:
    # Not splitlines: JSON may hold U+2028 and other line ends that are none in a file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line), f"line {number}"
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: invalid JSON: {reason(error)}; "
                    "write one JSON object per line, or one list"
                ) from error


def _list_values(text: str, path: Path) -> Iterator[tuple[object, str]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: invalid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: invalid JSON: {error}") from error
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


def reason(error: Exception) -> str:
    """What is wrong with JSON, without the place, which the caller knows better."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"
