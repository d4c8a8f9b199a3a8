"""Labelled texts as token ids, and what is found wrong with them before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import DataError
from llmkit.finetuning.examples import Example, without_too_long
from llmkit.records.labelled import LabelledText
from llmkit.records.text_files import shown
from llmkit.tokenizer import Tokenizer


@dataclass(frozen=True)
class LabelledIds:
    """A text as token ids, and the place of its label among the labels."""

    ids: tuple[int, ...]
    label: int


def fitting(
    records: Sequence[LabelledText], tokenizer: Tokenizer, context_length: int, source: Path
) -> list[LabelledText]:
    """Leave out, and report by line, texts that leave no room for the label's token."""
    ids = tokenizer.encode_batch([record.text for record in records])
    examples = [
        # The label's token as any id: what counts is that it is one more.
        Example((*text, 0), (False,) * len(text) + (True,), record.where)
        for text, record in zip(ids, records, strict=True)
    ]
    kept = {example.where for example in without_too_long(examples, context_length, str(source))}
    return [record for record in records if record.where in kept]


def encoded(
    records: Sequence[LabelledText], tokenizer: Tokenizer, labels: Sequence[str]
) -> list[LabelledIds]:
    """Texts as the ids that Ollama makes of the bare text."""
    ids = tokenizer.encode_batch([record.text for record in records])
    return [
        LabelledIds(tuple(text), labels.index(record.label))
        for text, record in zip(ids, records, strict=True)
    ]


def refuse_lost_labels(
    records: Sequence[LabelledText], labels: Sequence[str], source: Path
) -> None:
    """Raise DataError for a label all of whose texts were left out."""
    there = {record.label for record in records}
    for label in labels:
        if label not in there:
            raise DataError(
                f"{source}: every text with the label {shown(label)!r} is longer than the "
                "model's context; use a base with a longer one"
            )


def refuse_unknown_labels(
    records: Sequence[LabelledText], labels: Sequence[str], data: Path
) -> None:
    """Raise DataError naming the line of the first label that training has not."""
    for record in records:
        if record.label not in labels:
            raise DataError(
                f"{record.where}: the label {shown(record.label)!r} does not occur in {data}; "
                f"its labels are {shown(', '.join(labels))}"
            )
