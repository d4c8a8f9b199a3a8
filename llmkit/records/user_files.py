"""Records of a user's file, whether it is JSON, JSONL or a table."""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import DataError
from llmkit.records.csv_tables import is_table, read_rows, table_records
from llmkit.records.json_records import Record, is_json, json_records
from llmkit.records.text_files import read_text


def read_records(path: Path, formats: str) -> list[Record]:
    """JSON objects, or the rows of a CSV or TSV file with a header; content tells which.

    Raises DataError naming the line of what cannot be read, and saying which formats would do.
    """
    text = read_text(path, formats)
    if is_json(text, path):
        return json_records(text, path, formats)
    if not is_table(text, path):
        raise DataError(f"{path} is neither JSON nor a table; give {formats}")
    records = table_records(read_rows(text, path), path)
    if not records:
        raise DataError(f"{path} has no rows below the header; give {formats}")
    return records
