"""Conversations to learn from: instructions, chats, prompts with their completions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.modelfiles.prompt_format import Message, PromptFormat, Role
from llmkit.records.json_records import Record
from llmkit.records.text_files import shown
from llmkit.records.user_files import read_records

FORMATS = (
    "records (JSON, JSONL or a table) with instruction and output (Alpaca), instruction and "
    "response (Dolly), messages, conversations (ShareGPT), prompt and completion, or question "
    "and answer"
)

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",  # ShareGPT's names
    "gpt": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
TOOL_FIELDS = ("tool_calls", "function_call")
SYSTEM_FIELDS = ("system", "system_prompt")  # beside the question, as in OpenOrca and ShareGPT
_CHAT_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*["'](role|content|from|value)["']\s*:""")


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an answer, and their place, such as `chat.jsonl, line 3`."""

    messages: tuple[Message, ...]
    where: str

    @property
    def question(self) -> tuple[Message, ...]:
        """What a split keeps in one part: everything before the last answer."""
        return self.messages[:-1]


@dataclass(frozen=True)
class Shape:
    """The fields a record must have, and how its messages are read."""

    fields: tuple[str, ...]
    read: Callable[[Record, PromptFormat], tuple[Message, ...]]


def read_conversations(path: Path, form: PromptFormat) -> list[Conversation]:
    """Conversations of a JSON list or JSONL file, all in the shape of its first record.

    Answers lose the white space around them. Raises DataError naming the record's line.
    """
    return conversations_of(read_records(path, FORMATS), form, FORMATS)


def conversations_of(
    records: Sequence[Record], form: PromptFormat, formats: str
) -> list[Conversation]:
    """The same for records that are read; an error says which `formats` would do."""
    shape = _shape_of(records[0], formats)
    return [
        Conversation(with_system(record, shape.read(record, form)), record.where)
        for record in records
    ]


def _shape_of(first: Record, formats: str) -> Shape:
    for shape in SHAPES:
        if all(name in first.fields for name in shape.fields):
            return shape
    # A record that has the question of a shape most likely lacks its answer.
    for shape in SHAPES:
        if shape.fields[0] in first.fields:
            raise first.lacks(f'field "{shape.fields[1]}"')
    raise first.lacks(f"field of a known format; expected {formats}")


def with_system(record: Record, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Messages after the system text that some records have in a field of its own."""
    name = next((name for name in SYSTEM_FIELDS if name in record.fields), None)
    text = record.text_or_empty(name) if name else ""
    if not text.strip() or messages[0].role == "system":
        return messages
    return Message("system", text), *messages


def chat_or_text(record: Record, name: str) -> object:
    """The value of a field; a chat that was written as JSON text is read, as in CSV files.

    Raises DataError where it is written otherwise, such as by Python's str().
    """
    given = record.value(name)
    if not isinstance(given, str) or not _CHAT_AS_TEXT.match(given):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise record.fault(f'"{name}" looks like a chat, but is not valid JSON') from error


def read_messages(record: Record, name: str, value: object, last: Role) -> tuple[Message, ...]:
    """Messages of a chat, whose roles alternate after an optional system message.

    Answers are stripped, and an empty system message is left out. Raises DataError for
    another order, or where the last message is not of the given role.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise record.fault(f'"{name}" is not a list of messages')
    messages: list[Message] = []
    for number, item in enumerate(value, start=1):
        message = read_message(record, name, item, number)
        if message.role == "system" and number == 1:
            messages += [message] if message.content.strip() else []
            continue
        expected = "assistant" if messages and messages[-1].role == "user" else "user"
        if message.role != expected:
            raise record.fault(
                f'message {number} of "{name}": expected role {expected}, found {message.role}'
            )
        messages.append(message)
    if not messages or messages[-1].role != last:
        raise record.fault(f'"{name}" does not end with a message of role {last}')
    return tuple(messages)


def read_message(record: Record, name: str, item: object, number: int) -> Message:
    """One message: an object with role and content, or ShareGPT's from and value."""
    place = f'message {number} of "{name}"'
    if not isinstance(item, dict):
        raise record.fault(f"{place} is not an object with role and content")
    message = Record(item, f"{record.where}, {place}")
    role_name, content_name = ("from", "value") if "from" in item else ("role", "content")
    asks = next((name for name in TOOL_FIELDS if item.get(name)), None)
    if asks or item.get(role_name) in TOOL_ROLES:
        what = f'has "{asks}"' if asks else f"has the role {item[role_name]}"
        raise record.fault(f"{place} {what}: tools are not supported; remove such records")
    given = message.text(role_name)
    if given not in ROLES:
        raise message.fault(f"unknown role {shown(given)!r}; use one of: {', '.join(ROLES)}")
    role = ROLES[given]
    if role == "system":
        return Message(role, message.text_or_empty(content_name))
    content = message.text(content_name)
    return Message(role, content.strip() if role == "assistant" else content)


def read_question(record: Record, name: str) -> tuple[Message, ...]:
    """What is asked: text, a message, or a list of messages that ends with the user's."""
    given = chat_or_text(record, name)
    if isinstance(given, list | dict):
        return read_messages(record, name, given, last="user")
    return (Message("user", record.text(name)),)


def read_answer(record: Record, name: str, form: PromptFormat) -> tuple[tuple[Message, ...], str]:
    """An answer, and the messages before it where the field has them too.

    It may be text, a message of the assistant, or a list of messages that ends with one.
    """
    given = chat_or_text(record, name)
    if not isinstance(given, list | dict):
        return (), kept_or_stripped(record.text(name), form)
    items = given if isinstance(given, list) else [given]
    if len(items) == 1:
        message = read_message(record, name, items[0], 1)
        if message.role == "assistant":
            return (), message.content
    *before, answer = read_messages(record, name, items, last="assistant")
    return tuple(before), answer.content


def asked_and_answered(
    record: Record, asked: tuple[Message, ...], before: tuple[Message, ...]
) -> tuple[Message, ...]:
    """The messages of a question and those before its answer, where one ends with the other.

    Or where the question is the first one of a longer chat, as in UltraFeedback. Raises DataError
    where they differ.
    """
    shorter, longer = sorted((asked, before), key=len)
    n = len(asked)
    is_first = asked in (before[:n], before[1 : n + 1])  # with a system message before it
    if shorter and longer[-len(shorter) :] != shorter and not is_first:
        raise record.fault("the messages before the answer differ from the prompt")
    return longer


def kept_or_stripped(answer: str, form: PromptFormat) -> str:
    """An answer to a bare prompt: a completion's leading space belongs to it."""
    return answer if form.is_completion else answer.strip()


def _instructions(context: str, answer: str) -> Shape:
    def read(record: Record, form: PromptFormat) -> tuple[Message, ...]:
        question = form.user_content(record.text("instruction"), record.text_or_empty(context))
        return Message("user", question), Message("assistant", record.text(answer).strip())

    return Shape(("instruction", answer), read)


def _completions(prompt: str, answer: str) -> Shape:
    def read(record: Record, form: PromptFormat) -> tuple[Message, ...]:
        before, given = read_answer(record, answer, form)
        asked = asked_and_answered(record, read_question(record, prompt), before)
        return *asked, Message("assistant", given)

    return Shape((prompt, answer), read)


def _chat(name: str) -> Shape:
    def read(record: Record, _: PromptFormat) -> tuple[Message, ...]:
        return read_messages(record, name, chat_or_text(record, name), last="assistant")

    return Shape((name,), read)


# In this order: chats are often stored with their first question as "prompt" beside them.
SHAPES = (
    _chat("messages"),
    _chat("conversations"),
    _instructions("input", "output"),
    _instructions("context", "response"),
    _completions("prompt", "completion"),
    _completions("question", "answer"),
)
