"""Pairs of answers to one prompt, of which one is preferred."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llmkit.console import say
from llmkit.errors import DataError
from llmkit.modelfiles.prompt_format import Message, PromptFormat
from llmkit.records.conversations import (
    asked_and_answered,
    read_answer,
    read_question,
    with_system,
)
from llmkit.records.json_records import Record
from llmkit.records.user_files import read_records

FORMATS = (
    "records (JSON, JSONL or a table) with chosen, rejected, and prompt, question, messages or "
    "instruction"
)

# What a record is asked in; without any of them, chosen and rejected are whole chats.
QUESTION_FIELDS = ("prompt", "instruction", "messages", "conversations", "question")

# Anthropic's HH-RLHF: whole chats as text.
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Preference:
    """Messages that end with a user's, two answers, and their place in the file."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str

    @property
    def question(self) -> tuple[Message, ...]:
        """What a split keeps in one part: the messages that are answered."""
        return self.messages


def read_preferences(path: Path, form: PromptFormat) -> list[Preference]:
    """Preferences of a JSON list or JSONL file, all in the shape of its first record.

    Records whose two answers are the same teach nothing: they are left out, and their number
    is said. Raises DataError naming the record's line.
    """
    records = read_records(path, FORMATS)
    asked = next((name for name in QUESTION_FIELDS if name in records[0].fields), None)
    pairs = [_preference(record, asked, form) for record in records]
    different = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not different:
        raise DataError(f"{path}: chosen and rejected are the same in every record")
    if len(different) < len(pairs):
        left_out = len(pairs) - len(different)
        say(f"{path}: skipped {left_out} of {len(pairs)} records: chosen and rejected are equal")
    return different


def _preference(record: Record, asked: str | None, form: PromptFormat) -> Preference:
    if asked is None:
        record = _with_chats(record)
    (before, chosen), (before_rejected, rejected) = (
        read_answer(record, name, form) for name in ("chosen", "rejected")
    )
    if before and before_rejected and before != before_rejected:
        raise record.fault('the messages before the answer differ in "chosen" and "rejected"')
    before = before or before_rejected
    if asked is None and not before:
        raise record.lacks('field "prompt", and "chosen" is not a whole chat')
    messages = _question(record, asked, form) if asked else ()
    if asked == "instruction":  # its answer is never the end of a text
        chosen, rejected = chosen.strip(), rejected.strip()
    messages = asked_and_answered(record, messages, before)
    return Preference(with_system(record, messages), chosen, rejected, record.where)


def _with_chats(record: Record) -> Record:
    """A record whose transcripts (`Human: ... Assistant: ...`) are lists of messages."""
    fields = dict(record.fields)
    for name, value in fields.items():
        if isinstance(value, str) and _TURN.match(value):
            _, *parts = _TURN.split(value)
            fields[name] = [
                {"role": {"Human": "user", "Assistant": "assistant"}[who], "content": text.strip()}
                for who, text in zip(parts[::2], parts[1::2], strict=True)
            ]
    return Record(fields, record.where)


def _question(record: Record, asked: str, form: PromptFormat) -> tuple[Message, ...]:
    if asked != "instruction":
        return read_question(record, asked)
    text = form.user_content(record.text(asked), record.text_or_empty("input"))
    return (Message("user", text),)
