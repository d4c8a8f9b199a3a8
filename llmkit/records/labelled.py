"""Texts with labels, from TSV, CSV, JSON and JSONL files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.console import say
from llmkit.errors import DataError
from llmkit.records.csv_tables import Row, column_named, columns, read_rows, refuse_twice
from llmkit.records.json_records import Record, is_json, json_records
from llmkit.records.text_files import AS_IT_COMES, Reading, read_text, shown

FORMATS = "a TSV, CSV, JSON or JSONL file of texts with labels"

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


def read_labelled(path: Path, reading: Reading = AS_IT_COMES) -> list[LabelledText]:
    """Texts with labels: rows of a table, or JSON records; content tells which.

    Raises DataError naming the line of a record that lacks its text or label, or the column
    that does not look like labels.
    """
    text = read_text(path, FORMATS, reading.encoding)
    if is_json(text, path):
        records = [_from_json(record, reading) for record in json_records(text, path, FORMATS)]
    else:
        records = _from_rows(read_rows(text, path, reading.delimiter), path, reading)
    for record in records:
        if not record.text.strip():
            raise DataError(f"{record.where}: the text is empty")
        if not record.label:
            raise DataError(f"{record.where}: the label is empty")
    _check_labels(records, path)
    return records


def _from_json(record: Record, reading: Reading) -> LabelledText:
    text = _cell(record, reading.text_column, TEXT_NAMES)
    label = _cell(record, reading.label_column, LABEL_NAMES)
    return LabelledText(text, label.strip(), record.where)


def _cell(record: Record, asked: str | None, known: Sequence[str]) -> str:
    """A field as a table has it: numbers, true and false as text, null and NaN as nothing."""
    fields = {name.lower(): name for name in reversed(record.fields)}
    names = known if asked is None else (asked.strip().lower(),)
    name = next((fields[name] for name in names if name in fields), None)
    if name is None:
        others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        raise record.lacks(f'field "{names[0] if asked is None else shown(asked)}"{others}')
    value = record.fields[name]
    return "" if value is None else record.checked(value, f'"{name}"')


def _from_rows(rows: Sequence[Row], path: Path, reading: Reading) -> list[LabelledText]:
    text, label, has_header = _columns(rows, path, reading)
    below = rows[1:] if has_header else rows
    if not below:
        raise DataError(f"{path} has no rows below the header; give {FORMATS}")
    return [
        LabelledText(row.cells[text], row.cells[label].strip(), f"{path}, line {row.line}")
        for row in below
    ]


def _columns(rows: Sequence[Row], path: Path, reading: Reading) -> tuple[int, int, bool]:
    """Places of the text's and the label's column, and whether the first row is a header."""
    header = rows[0]
    asked = [
        None if name is None else column_named(name, header, path)
        for name in (reading.text_column, reading.label_column)
    ]
    has_header = any(found[1] for found in asked if found) or _is_header(rows)
    used = [place for place, cell in enumerate(header.cells) if cell.strip()]
    if not all(asked) and len(used) < len(header.cells):
        _note_unnamed(
            [place for place in range(len(header.cells)) if place not in used], rows, path
        )
    places = [None if found is None else found[0] for found in asked]
    if has_header:
        names = _names(header)
        for n, known in enumerate((TEXT_NAMES, LABEL_NAMES)):
            if places[n] is None:
                name = next((name for name in known if name in names), None)
                if name is not None:
                    refuse_twice(name, names, header, path)
                    places[n] = names.index(name)
    one = next((place for place in places if place is not None), None)
    if len(used) == 2 and one in used:  # one column tells what the other is
        other = used[1 - used.index(one)]
        places = [other if place is None else place for place in places]
    if places == [None, None] and not has_header:
        places = [*_guessed_columns(rows, used, path)]
    kinds = (("text", TEXT_NAMES), ("label", LABEL_NAMES))
    for place, (kind, known) in zip(places, kinds, strict=True):
        if place is None:
            raise DataError(
                f"{path}, line {header.line}: no {kind} column among {columns(header)}; choose "
                f"it with --{kind}-column, or call it {', '.join(known[:-1])} or {known[-1]}"
            )
    text, labels = (place for place in places if place is not None)
    if text == labels:
        raise DataError(f"{path}: text and label are the same column; choose two")
    return text, labels, has_header or _looks_like_names(rows, text, labels, path)


def _is_header(rows: Sequence[Row]) -> bool:
    """Whether the first row names the columns.

    It does where it names both; where only one name is known, that must not come again below it:
    a label may be called "review" too.
    """
    names = _names(rows[0])
    known = [place for place, name in enumerate(names) if name in TEXT_NAMES or name in LABEL_NAMES]
    if set(names) & set(TEXT_NAMES) and set(names) & set(LABEL_NAMES):
        return True
    return bool(known) and not any(
        row.cells[place].strip().lower() == names[place] for row in rows[1:] for place in known
    )


def _note_unnamed(places: Sequence[int], rows: Sequence[Row], path: Path) -> None:
    filled = next((row for row in rows if any(row.cells[place].strip() for place in places)), None)
    what = "1 column without a name" if len(places) == 1 else f"{len(places)} columns without names"
    there = f" (line {filled.line} is not empty there)" if filled else ""
    say(f"{path}: skipped {what}{there}")


def _names(row: Row) -> list[str]:
    return [cell.strip().lower() for cell in row.cells]


def _guessed_columns(rows: Sequence[Row], used: Sequence[int], path: Path) -> tuple[int, int]:
    """The columns of text and label in a file without known names.

    Labels repeat and texts hardly do, so the label column is the one with fewer different
    values, wherever it stands.
    """
    count = len(used)
    if count != 2:
        raise DataError(
            f"{path}, line {rows[0].line}: {count} column{'s' * (count > 1)} and no header line; "
            "give a text and a label, separated by a tab, comma, semicolon or bar (--delimiter), "
            "or choose the columns with --text-column and --label-column, by name or number"
        )
    first, second = (len({row.cells[column] for row in rows}) for column in used)
    if first == second:
        raise DataError(
            f"{path}: both columns have {first} different values in {len(rows)} rows, so neither "
            "looks like labels; choose them with --text-column and --label-column"
        )
    return (used[1], used[0]) if first < second else (used[0], used[1])


def _looks_like_names(rows: Sequence[Row], text: int, label: int, path: Path) -> bool:
    """Whether the first row is a header of unknown names, such as v1,v2.

    As a record it would be of no use: a label that occurs once cannot be learned.
    """
    names = rows[0].cells[text].strip(), rows[0].cells[label].strip()
    counts = Counter(row.cells[label].strip() for row in rows)
    if counts[names[1]] > 1 or len(rows) < 10:
        return False
    if not all(re.fullmatch(r"[^\W\d]\w{0,30}", name) for name in names):
        return False
    say(
        f"{path}, line {rows[0].line} is read as a header: {names[0]!r} is the text, {names[1]!r} "
        "the label; change this with --text-column and --label-column"
    )
    return True


def _check_labels(records: Sequence[LabelledText], path: Path) -> None:
    labels = {record.label for record in records}
    if len(labels) == 1:
        raise DataError(
            f"{path}: every text has the label {shown(labels.pop())!r}; "
            "at least two labels are needed"
        )
    found = None
    if len(labels) == len(records):
        found = f"each of the {len(records)} texts has a different label"
    elif len(labels) > MAX_LABELS:
        found = f"{len(labels)} different labels, but at most {MAX_LABELS} are supported"
    if found:
        example = shown(records[0].label)
        raise DataError(f"{path}: {found} (the first is {example!r}); probably the wrong column")
