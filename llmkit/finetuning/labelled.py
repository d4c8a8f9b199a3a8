"""Texts with labels, from TSV, CSV, JSON and JSONL files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError
from llmkit.finetuning.json_records import Record, read_json_records, read_text, shown
from llmkit.finetuning.tables import Row, read_rows

FORMATS = "a TSV, CSV, JSON or JSONL file of texts with labels"
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")

# What columns and fields are called, in any case; the first one that is there counts.
TEXT_NAMES = ("text", "sentence", "message", "review", "content")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment")

MAX_LABELS = 100  # each label becomes a token of its own in the exported model


@dataclass(frozen=True)
class LabelledText:
    """A text, its label and its place, such as `spam.tsv, line 3`."""

    text: str
    label: str
    where: str

    @property
    def question(self) -> str:
        """What a split keeps in one part: the text without the white space around it."""
        return self.text.strip()


def read_labelled(path: Path) -> list[LabelledText]:
    """Texts with labels: rows of a .tsv, .csv or other text file, or JSON records.

    Raises DataError naming the line of a record that lacks its text or label, or the column
    that does not look like labels.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        records = [_from_json(record) for record in read_json_records(path, FORMATS)]
    else:
        records = _from_rows(read_rows(read_text(path, FORMATS), path), path)
    for record in records:
        if not record.text.strip():
            raise DataError(f"{record.where}: the text is empty")
        if not record.label:
            raise DataError(f"{record.where}: the label is empty")
    _check_labels(records, path)
    return records


def _from_json(record: Record) -> LabelledText:
    text_name, text = _field(record, TEXT_NAMES)
    label_name, label = _field(record, LABEL_NAMES)
    if isinstance(label, int):
        label = json.dumps(label)  # 0 and 1, true and false are labels too
    return LabelledText(
        record.checked(text, text_name), record.checked(label, label_name).strip(), record.where
    )


def _field(record: Record, names: Sequence[str]) -> tuple[str, object]:
    fields = {name.lower(): name for name in reversed(record.fields)}
    for name in names:
        if name in fields:
            return f'"{fields[name]}"', record.fields[fields[name]]
    raise record.lacks(f'field "{names[0]}" (or {", ".join(names[1:])})')


def _from_rows(rows: Sequence[Row], path: Path) -> list[LabelledText]:
    header = _header(rows)
    text, label = _named_columns(header, path) if header else _guessed_columns(rows, path)
    below = rows[1:] if header else rows
    if not below:
        raise DataError(f"{path} holds no row below the header line; give {FORMATS}")
    return [
        LabelledText(row.cells[text], row.cells[label].strip(), f"{path}, line {row.line}")
        for row in below
    ]


def _header(rows: Sequence[Row]) -> Row | None:
    """The first row, if a cell is a known name and no cell comes again below it.

    A label may be called "review" too, but then it occurs again.
    """
    names = _names(rows[0])
    if not any(name in TEXT_NAMES + LABEL_NAMES for name in names):
        return None
    again = any(
        cell == name for row in rows[1:] for cell, name in zip(_names(row), names, strict=True)
    )
    return None if again else rows[0]


def _names(row: Row) -> list[str]:
    return [cell.strip().lower() for cell in row.cells]


def _named_columns(header: Row, path: Path) -> tuple[int, int]:
    names = _names(header)
    text = next((names.index(name) for name in TEXT_NAMES if name in names), None)
    label = next((names.index(name) for name in LABEL_NAMES if name in names), None)
    if len(names) == 2:  # one known name tells what the other column is
        text = 1 - label if text is None and label is not None else text
        label = 1 - text if label is None and text is not None else label
    if text is None or label is None:
        kind, known = ("text", TEXT_NAMES) if text is None else ("label", LABEL_NAMES)
        raise DataError(
            f"{path}, line {header.line}: no {kind} column among {shown(', '.join(names))}; "
            f"call it {', '.join(known[:-1])} or {known[-1]}"
        )
    return text, label


def _guessed_columns(rows: Sequence[Row], path: Path) -> tuple[int, int]:
    """The columns of text and label in a file without a header.

    Labels repeat and texts hardly do, so the label column is the one with fewer different
    values, wherever it stands.
    """
    count = len(rows[0].cells)
    if count != 2:
        raise DataError(
            f"{path}, line {rows[0].line}: {count} column{'s' * (count > 1)} and no header line; "
            "give a text and a label, divided by a tab (.tsv) or a comma (.csv), "
            "or name the columns text and label"
        )
    first, second = (len({row.cells[column] for row in rows}) for column in range(2))
    if first == second:
        raise DataError(
            f"{path}: both columns hold {first} different values in {len(rows)} rows, so neither "
            "looks like labels; add a header line that names them text and label"
        )
    return (1, 0) if first < second else (0, 1)


def _check_labels(records: Sequence[LabelledText], path: Path) -> None:
    labels = {record.label for record in records}
    if len(labels) == 1:
        raise DataError(
            f"{path}: every text has the label {shown(labels.pop())!r}; two labels are needed"
        )
    found = None
    if len(labels) == len(records):
        found = f"each of the {len(records)} texts has a label of its own"
    elif len(labels) > MAX_LABELS:
        found = f"{len(labels)} different labels, and at most {MAX_LABELS} can be learned"
    if found:
        example = shown(records[0].label)
        raise DataError(f"{path}: {found} (the first is {example!r}); probably the wrong column")
