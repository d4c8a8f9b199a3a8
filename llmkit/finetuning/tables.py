"""Rows of CSV and TSV files, quoted or not, each with the line it begins in."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Row:
    """The cells of a row and the number of the line it begins in."""

    cells: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class _Reading:
    """The rows before the first fault, and that fault with its line."""

    rows: list[Row]
    fault: str | None = None
    fault_line: int = 0


def read_rows(text: str, path: Path) -> list[Row]:
    """Rows of equally many cells, divided by commas or tabs; blank lines are skipped.

    Raises DataError naming the line of a row with more or fewer cells than the first, or of a
    quote that is never closed.
    """
    delimiter = DELIMITERS.get(path.suffix.lower()) or _sniffed(text)
    quoted = _read(text, delimiter, quotes=True)
    plain = _read(text, delimiter, quotes=False)
    plain_fits = plain.fault is None and _same_columns(quoted.rows, plain.rows)
    if plain_fits and (quoted.fault or _swallows(quoted.rows, plain.rows)):
        return plain.rows
    if quoted.fault is None:
        return quoted.rows
    # Neither works: the one that came further is most likely how the file is meant.
    reading = plain if plain.fault_line > quoted.fault_line else quoted
    raise DataError(f"{path}, line {reading.fault_line}: {reading.fault}")


def _sniffed(text: str) -> str:
    return "\t" if "\t" in text.lstrip("\r\n ").split("\n", 1)[0] else ","


def _read(text: str, delimiter: str, *, quotes: bool) -> _Reading:
    # strict refuses `"two" words`, which in a file without quoted fields is just text.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    rows: list[Row] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            return _Reading(rows, _explained(error), line)
        if cells is None:
            return _Reading(rows)
        if not any(cell.strip() for cell in cells) and len(cells) < 2:
            continue  # a blank line
        if rows and len(cells) != len(rows[0].cells):
            wanted = f"line {rows[0].line} has {len(rows[0].cells)}"
            return _Reading(rows, f"{_columns(len(cells))}, but {wanted}", line)
        rows.append(Row(tuple(cells), line))


def _explained(error: csv.Error) -> str:
    if "expected after" in str(error):
        return 'text behind a closing quote; inside a quoted field write " as ""'
    if "unexpected end" in str(error):
        return "a quoted field begins here and is never closed"
    return str(error)


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _same_columns(quoted: Sequence[Row], plain: Sequence[Row]) -> bool:
    """Whether no quoted cell of the first row holds a delimiter."""
    return not quoted or len(quoted[0].cells) == len(plain[0].cells)


def _swallows(quoted: Sequence[Row], plain: Sequence[Row]) -> bool:
    """Whether stray quotes made whole rows part of one quoted field.

    Then the lines are rows of their own too, and add nothing to the column with the fewest
    values, which holds the labels. Lines of a text that was really quoted would.
    """
    if len(plain) <= len(quoted):
        return False
    columns = range(len(quoted[0].cells))
    values = [{row.cells[column] for row in quoted} for column in columns]
    fewest = min(columns, key=lambda column: len(values[column]))
    return {row.cells[fewest] for row in plain} <= values[fewest]
