"""Rows of CSV and TSV files, quoted or not, each with the line it begins in."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError
from llmkit.records.json_records import Record
from llmkit.records.text_files import TABLE_SUFFIXES, shown

DELIMITERS = ",\t;|"
_SEP_LINE = re.compile(r"sep=(.)\r?\n")  # Excel's own way to name the delimiter

csv.field_size_limit(1 << 30)  # a cell may hold a whole book


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

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.rows[0].cells) if self.rows else 0


def read_rows(text: str, path: Path, delimiter: str | None = None) -> list[Row]:
    """Rows of equally many cells; blank lines are skipped.

    Without `delimiter` it is the one of comma, tab, semicolon and bar that divides every row
    into the same number of cells. Empty cells at the end of a row may be too many, or be missing
    where the first row has none either. Raises DataError naming the line of a row with more or
    fewer cells than the first, or of a quote that is never closed.
    """
    reading = _reading(text, path, delimiter)
    if reading.fault is not None:
        raise DataError(f"{path}, line {reading.fault_line}: {reading.fault}")
    return reading.rows


def is_table(text: str, path: Path, delimiter: str | None = None) -> bool:
    """Whether a file is a table: by its name, or because every line has as many tabs."""
    if delimiter is not None or path.suffix.lower() in TABLE_SUFFIXES:
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or all(line.startswith("\t") for line in lines):  # or indented text
        return False
    tabs = {line.count("\t") for line in lines}
    return len(tabs) == 1 and tabs != {0}


def table_records(rows: Sequence[Row], path: Path) -> list[Record]:
    """Rows below a header as records whose fields are the columns that have a name.

    Raises DataError where two columns have the same.
    """
    names = [name.strip() for name in rows[0].cells]
    for name in filter(None, names):
        refuse_twice(name, names, rows[0], path)
    return [
        Record(
            {name: cell for name, cell in zip(names, row.cells, strict=True) if name},
            f"{path}, line {row.line}",
        )
        for row in rows[1:]
    ]


def column_named(name: str, header: Row, path: Path) -> tuple[int, bool]:
    """Place of a column, given by name or by number from 1, and whether the row names it.

    Raises DataError listing the columns, also where two have this name.
    """
    names = [cell.strip().lower() for cell in header.cells]
    if name.strip().lower() in names:
        refuse_twice(name.strip().lower(), names, header, path)
        return names.index(name.strip().lower()), True
    if name.isdecimal() and 0 < int(name) <= len(names):
        return int(name) - 1, False
    raise DataError(
        f"{path}, line {header.line}: no column {shown(name)!r}; found columns: {columns(header)}"
    )


def refuse_twice(name: str, names: Sequence[str], header: Row, path: Path) -> None:
    """Raise DataError where a name that is asked for is that of two columns."""
    if names.count(name) > 1:
        raise DataError(
            f"{path}, line {header.line}: {names.count(name)} columns are called {shown(name)!r}; "
            "rename all but one"
        )


def columns(header: Row) -> str:
    """The names in a header, for an error."""
    return shown(", ".join(cell.strip() for cell in header.cells if cell.strip()))


def _reading(text: str, path: Path, delimiter: str | None) -> _Reading:
    first_line = 1
    if delimiter is None and (said := _SEP_LINE.match(text)):
        delimiter, text, first_line = said[1], text[said.end() :], 2
    if delimiter is not None:
        return _quoted_or_plain(text, delimiter, first_line)
    likely = "," if path.suffix.lower() == ".csv" else "\t"
    readings = []
    for candidate in (likely, *DELIMITERS.replace(likely, "")):
        reading = _quoted_or_plain(text, candidate, first_line)
        if reading.fault is None and reading.width > 1:
            return reading
        readings.append(reading)
    # None works: the one that comes furthest is most likely how the file is meant.
    divided = [reading for reading in readings if reading.width > 1]
    return max(divided or readings[:1], key=lambda reading: reading.fault_line)


def _quoted_or_plain(text: str, delimiter: str, first_line: int) -> _Reading:
    quoted = _read(text, delimiter, first_line, quotes=True)
    if '"' not in text:
        return quoted
    plain = _read(text, delimiter, first_line, quotes=False)
    plain_fits = plain.fault is None and _same_columns(quoted.rows, plain.rows)
    if plain_fits and (quoted.fault or _swallows(quoted.rows, plain.rows)):
        return plain
    if quoted.fault is None:
        return quoted
    # Neither works: the one that came further is most likely how the file is meant.
    return plain if plain.fault_line > quoted.fault_line else quoted


def _read(text: str, delimiter: str, first_line: int, *, quotes: bool) -> _Reading:
    # strict refuses `"two" words`, which in a file without quoted fields is just text.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        skipinitialspace=quotes and _has_space_before_quotes(text, delimiter),
        strict=True,
    )
    rows: list[Row] = []
    while True:
        line = reader.line_num + first_line
        try:
            cells = next(reader, None)
        except csv.Error as error:
            return _Reading(rows, _explained(error), line)
        if cells is None:
            return _Reading(rows)
        if not any(cell.strip() for cell in cells) and len(cells) < 2:
            continue  # a blank line
        if rows:
            cells = _fitted(cells, rows[0].cells)
            if len(cells) != len(rows[0].cells):
                fault = f"expected {_columns(len(rows[0].cells))} as in line {rows[0].line}"
                return _Reading(rows, f"{fault}, found {len(cells)}", line)
        rows.append(Row(tuple(cells), line))


def _has_space_before_quotes(text: str, delimiter: str) -> bool:
    """Whether some cell is written `, "so"`, as csv's own writers never do."""
    d = re.escape(delimiter)
    for found in re.finditer(rf'{d} +"[^"\r\n{d}]', text):
        line = text.rfind("\n", 0, found.start()) + 1
        if text.count('"', line, found.start()) % 2 == 0:  # not within a quoted cell
            return True
    return False


def _fitted(cells: list[str], first: Sequence[str]) -> list[str]:
    """Cells with as many empty ones at the end as the first row has."""
    if not any(cell.strip() for cell in cells[len(first) :]):
        cells = cells[: len(first)]
    if not any(cell.strip() for cell in first[len(cells) :]):
        cells = [*cells, *first[len(cells) :]]
    return cells


def _explained(error: csv.Error) -> str:
    if "expected after" in str(error):
        return 'text after a closing quote; inside a quoted field, write " as ""'
    if "unexpected end" in str(error):
        return "the quoted field that starts here has no closing quote"
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
