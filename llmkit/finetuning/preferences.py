"""Pairs of answers to one prompt, of which one is preferred."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmkit.console import say
from llmkit.data.json_records import Record
from llmkit.data.records import read_records
from llmkit.errors import DataError
from llmkit.finetuning.conversations import kept_or_stripped, read_message, read_messages
from llmkit.modelfiles.prompt_format import Message, PromptFormat

FORMATS = "JSON or JSONL with chosen and rejected, and a prompt or an instruction"

# What a record is asked in; without any of them, chosen and rejected are whole chats.
QUESTION_FIELDS = ("prompt", "instruction")


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
        say(f"{path}: {left_out} of {len(pairs)} records left out: chosen and rejected are equal")
    return different


def _preference(record: Record, asked: str | None, form: PromptFormat) -> Preference:
    if asked is None:
        return _from_chats(record)
    messages = _question(record, asked, form)
    chosen, rejected = _answer(record, "chosen"), _answer(record, "rejected")
    if asked == "prompt":
        chosen, rejected = kept_or_stripped(chosen, form), kept_or_stripped(rejected, form)
    else:
        chosen, rejected = chosen.strip(), rejected.strip()
    return Preference(messages, chosen, rejected, record.where)


def _question(record: Record, asked: str, form: PromptFormat) -> tuple[Message, ...]:
    given = record.value(asked)
    if asked == "prompt" and isinstance(given, list):
        return read_messages(record, asked, given, last="user")
    text = record.text(asked)
    if asked == "instruction":
        text = form.user_content(text, record.text_or_empty("input"))
    return (Message("user", text),)


def _answer(record: Record, name: str) -> str:
    """An answer given as text, or as messages of which the last one is it."""
    given = record.value(name)
    if not isinstance(given, list):
        return record.text(name)
    message = read_message(record, name, given[-1], len(given)) if given else None
    if message is None or message.role != "assistant":
        raise record.fault(f'"{name}" does not end with a message of the assistant')
    return message.content


def _from_chats(record: Record) -> Preference:
    chosen, rejected = (
        read_messages(record, name, record.value(name), last="assistant")
        for name in ("chosen", "rejected")
    )
    if chosen[:-1] != rejected[:-1]:
        raise record.fault('"chosen" and "rejected" answer different messages')
    return Preference(chosen[:-1], chosen[-1].content, rejected[-1].content, record.where)
