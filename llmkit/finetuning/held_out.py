"""The records that fine-tuning trained on and held out, as the model reads them."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import DataError
from llmkit.files import cannot_read
from llmkit.finetuning.examples import Example, encode_conversation
from llmkit.modelfiles.prompt_format import Message


def held_out_examples(checkpoint: Checkpoint) -> list[Example]:
    """Every record of the test part. Raises DataError where the file is missing or damaged."""
    lines = _lines(checkpoint.held_out_file)
    return [_example(checkpoint, line, where) for line, where in lines]


def trained_examples(checkpoint: Checkpoint) -> list[Example]:
    """Every record of the training part. Raises DataError where the file is missing or damaged."""
    lines = _lines(checkpoint.trained_file)
    return [_example(checkpoint, line, where) for line, where in lines]


def held_out_questions(checkpoint: Checkpoint) -> list[tuple[Message, ...]]:
    """What is asked in each record of the test part; nothing where none was held out."""
    if not checkpoint.held_out_file.exists():
        return []
    lines = _lines(checkpoint.held_out_file)
    return [_question(checkpoint, line, where) for line, where in lines]


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(cannot_read(path, error)) from error
    return [(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _question(checkpoint: Checkpoint, line: str, where: str) -> tuple[Message, ...]:
    try:
        record = json.loads(line)
        if checkpoint.labels:
            return (Message("user", record["text"]),)
        return tuple(Message(**message) for message in record["messages"][:-1])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{where}: not a valid held-out record: {error}") from error


def _example(checkpoint: Checkpoint, line: str, where: str) -> Example:
    tokenizer = checkpoint.tokenizer
    try:
        record = json.loads(line)
        if checkpoint.labels:
            label_id = checkpoint.label_ids[checkpoint.labels.index(record["label"])]
            text = tokenizer.encode(record["text"])
            return Example((*text, label_id), (*(False,) * len(text), True), where)
        messages = [Message(**message) for message in record["messages"]]
        return encode_conversation(messages, checkpoint.prompt_format, tokenizer, where)
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{where}: not a valid held-out record: {error}") from error
