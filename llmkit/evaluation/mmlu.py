"""MMLU: multiple-choice questions by subject, in a folder of CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmkit.errors import DataError
from llmkit.evaluation.formats import without_duplicates
from llmkit.evaluation.items import Choice, Way
from llmkit.evaluation.mmlu_groups import GROUPS
from llmkit.records.csv_tables import read_rows
from llmkit.records.json_records import Record
from llmkit.records.text_files import read_text

_LETTERS = "ABCDEFGHIJ"


def mmlu(path: Path, shots: int = 0) -> list[Choice]:
    """MMLU's folder: SUBJECT_test.csv with question, four options and a letter, without header.

    `shots`: so many questions of SUBJECT_dev.csv, with their answers, before each, as in the
    original. Raises DataError, with file and line.
    """
    files = sorted(path.glob("**/*_test.csv")) or sorted(path.glob("**/*.csv"))
    if not files:
        raise DataError(f"{path} has no CSV files")
    found = []
    for file in files:
        subject = file.stem.removesuffix("_test")
        groups = (subject, GROUPS[subject]) if subject in GROUPS else (subject,)
        examples = _examples(path, subject, shots) if shots else ()
        found += [_with_examples(item, subject, examples) for item in _exam(file, groups)]
    return without_duplicates(found)


def _exam(file: Path, groups: tuple[str, ...]) -> list[Choice]:
    found = []
    for row in read_rows(read_text(file, "MMLU's CSV"), file, ","):
        where = f"{file}, line {row.line}"
        if len(row.cells) != 6:
            raise DataError(f"{where}: expected 6 columns, found {len(row.cells)}")
        question, *options, letter = (cell.strip() for cell in row.cells)
        record = Record({"question": question}, where)
        found.append(_exam_question(record, options, letter, groups))
    return found


def _examples(path: Path, subject: str, shots: int) -> list[Choice]:
    """The first questions of a subject's dev split."""
    name = f"{subject}_dev.csv"
    file = next(iter(sorted(path.glob(f"**/{name}"))), None)
    if file is None:
        raise DataError(f"{path} has no {name}, which --shots takes its examples from")
    found = _exam(file, ())
    if len(found) < shots:
        raise DataError(f"{file} has {len(found)} examples, fewer than --shots {shots}")
    return found[:shots]


def _with_examples(item: Choice, subject: str, examples: Sequence[Choice]) -> Choice:
    """Under the heading of the original, each way with its examples."""
    if not examples:
        return item
    about = subject.replace("_", " ")
    heading = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    ways = tuple(
        replace(
            way,
            heading=heading,
            examples=tuple(
                f"{one.ways[number].context} {one.ways[number].options[one.answer]}\n\n"
                for one in examples
            ),
        )
        for number, way in enumerate(item.ways)
    )
    return replace(item, ways=ways)


def _exam_question(
    record: Record, options: Sequence[str], letter: str, groups: tuple[str, ...]
) -> Choice:
    letters = _LETTERS[: len(options)]
    if len(letter) != 1 or letter not in letters:
        raise record.fault(f"the answer {letter!r} is not among {', '.join(letters)}")
    texts = [record.filled(option, f"option {letters[i]}") for i, option in enumerate(options)]
    listed = "\n".join(f"{letters[i]}. {option}" for i, option in enumerate(texts))
    question = record.text("question")
    by_letter = Way(f"{question}\n{listed}\nAnswer:", tuple(letters), "by letter")
    by_text = Way(f"Question: {question}\nAnswer:", tuple(texts), "by text", "by text, normalised")
    return Choice(record.where, (by_letter, by_text), letters.index(letter), groups)
