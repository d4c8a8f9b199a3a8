"""Prompt formats: how the messages of a conversation become the text that a model reads.

One `PromptFormat` is the source of four renderings: the pieces that are trained on, Ollama's
TEMPLATE, the Jinja `tokenizer.chat_template` of a GGUF file, and the stop strings.

Training and inference see the same ids only where GPT-2's split cuts the text alike, whether an
answer is tokenized together with the text before it or apart. It does where that text ends with
a special token, or with exactly one line end after another character, and the answer begins
with no white space. The built-in formats keep to this; an own one should too. COMPLETION cannot:
there the prompt runs straight into the answer.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic.dataclasses
from pydantic import ConfigDict, Field, StrictStr, TypeAdapter, ValidationError

from llmkit.errors import ConfigError, DataError, unknown_name, wrong_field
from llmkit.files import StrPath, cannot_read
from llmkit.modelfiles import renderings

END_OF_TEXT = "<|endoftext|>"

Role = Literal["system", "user", "assistant"]
PieceKind = Literal["prompt", "answer", "special"]
Name = Annotated[StrictStr, Field(min_length=1)]


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says at once."""

    role: Role
    content: str


@dataclass(frozen=True)
class Piece:
    """Text that is tokenized by itself; a special piece is one token."""

    text: str
    kind: PieceKind


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Turn:
    """The text around a message."""

    before: StrictStr = ""
    after: StrictStr = ""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PromptFormat:
    """The texts around messages, and the special tokens in them.

    `end` is the special token that ends every answer: it stands before `assistant.after`.
    `default_system` is the system text of a conversation that does not begin with one; an empty
    system message stands for none. `input_before` stands between an instruction and its input.
    Raises ConfigError for a special token that no text has.
    """

    name: Name
    system: Turn
    user: Turn
    assistant: Turn
    end: Name = END_OF_TEXT
    special_tokens: tuple[Name, ...] = ()  # those in the texts besides `end`
    default_system: StrictStr = ""
    input_before: StrictStr = "\n\n"

    def __post_init__(self) -> None:
        turns = (self.system, self.user, self.assistant)
        texts = [self.end, *(text for turn in turns for text in (turn.before, turn.after))]
        for token in self.special_tokens:
            if not any(token in text for text in texts):
                raise ConfigError(
                    f"special_tokens: {token!r} does not occur in any text of the format"
                )

    def user_content(self, instruction: str, input: str = "") -> str:
        """A user message that asks for something, with the text it is to be done with."""
        return instruction + self.input_before + input if input else instruction

    def pieces(self, messages: Sequence[Message], *, for_answer: bool = False) -> list[Piece]:
        """What is tokenized, in order: prompt text, special tokens and answers.

        Special tokens are found in the format's own texts; in a message they stay text.
        The last answer ends with `end`; with `for_answer` the text ends where the answer to the
        last message begins. Empty messages leave nothing. Raises DataError for a conversation
        that Ollama would tear apart: an empty answer, a system message between a question and
        its answer, or with `for_answer` a last message that is no question.
        """
        conversation = self._conversation(messages)
        if for_answer and (not conversation or conversation[-1].role != "user"):
            raise DataError("the last message must be from the user")
        pieces: list[Piece] = []
        for number, message in enumerate(conversation, 1):
            if not message.content:
                continue
            turn: Turn = getattr(self, message.role)
            pieces += self._own_pieces(turn.before)
            if message.role == "assistant":
                pieces += [Piece(message.content, "answer"), Piece(self.end, "special")]
                if number == len(conversation):
                    break
            else:
                pieces.append(Piece(message.content, "prompt"))
            pieces += self._own_pieces(turn.after)
        if for_answer:
            pieces += self._own_pieces(self.assistant.before)
        return _merged(pieces)

    def text(self, messages: Sequence[Message], *, for_answer: bool = False) -> str:
        """The pieces as one text; with `for_answer` what Ollama sends to the model."""
        return "".join(piece.text for piece in self.pieces(messages, for_answer=for_answer))

    @property
    def template(self) -> str:
        """Ollama's TEMPLATE. It has no place for `default_system`, which SYSTEM is for."""
        return renderings.go_template(self)

    @property
    def chat_template(self) -> str:
        """The Jinja template of a GGUF file's `tokenizer.chat_template`."""
        return renderings.jinja_template(self)

    @property
    def stops(self) -> tuple[str, ...]:
        """The special tokens: an answer has ended at any of them. `end` comes first."""
        return tuple(dict.fromkeys((self.end, *self.special_tokens, END_OF_TEXT)))

    @property
    def is_completion(self) -> bool:
        """Whether a prompt runs straight into the answer, whatever token ends it."""
        return replace(self, end=END_OF_TEXT) == COMPLETION

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON, which `prompt_format_from` reads."""
        return {**asdict(self), "special_tokens": list(self.special_tokens)}

    def _conversation(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as Ollama sees them: those of one role joined, a system text in front."""
        conversation: list[Message] = []
        if self.default_system and (not messages or messages[0].role != "system"):
            conversation.append(Message("system", self.default_system))
        for message in messages:
            if conversation and conversation[-1].role == message.role:
                before = conversation.pop().content
                message = Message(
                    message.role, before + renderings.BETWEEN_MESSAGES + message.content
                )
            elif message.role == "system" and conversation and conversation[-1].role == "user":
                raise DataError(
                    "a system message follows a user message; put it before the user message"
                )
            conversation.append(message)
        if any(message.role == "assistant" and not message.content for message in conversation):
            raise DataError("an assistant message is empty; remove it and its question")
        return conversation

    def _own_pieces(self, text: str) -> Iterator[Piece]:
        # The longest first: a token may begin with another one.
        tokens = sorted(self.stops, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
        for number, part in enumerate(parts):
            yield Piece(part, "special" if number % 2 else "prompt")


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces without empty ones, prompt text that follows prompt text in one piece."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and merged[-1].kind == piece.kind == "prompt":
            merged[-1] = Piece(merged[-1].text + piece.text, "prompt")
        elif piece.text:
            merged.append(piece)
    return merged


COMPLETION = PromptFormat("completion", Turn("", "\n\n"), Turn(), Turn())

# Stanford Alpaca's prompt. It has another system text where there is an input; a conversation
# has one system text, so both kinds of record get the one without.
ALPACA = PromptFormat(
    "alpaca",
    system=Turn("", "\n\n"),
    user=Turn("### Instruction:\n", "\n\n"),
    assistant=Turn("### Response:\n", "\n\n"),
    default_system="Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    input_before="\n\n### Input:\n",
)

CHATML = PromptFormat(
    "chatml",
    system=Turn("<|im_start|>system\n", "<|im_end|>\n"),
    user=Turn("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=Turn("<|im_start|>assistant\n", "\n"),
    end="<|im_end|>",
    special_tokens=("<|im_start|>",),
)

USER_ASSISTANT = PromptFormat(
    "user-assistant",
    system=Turn("", "\n\n"),
    user=Turn("User:\n", "\n\n"),
    assistant=Turn("Assistant:\n", "\n"),
)

PROMPT_FORMATS = {form.name: form for form in (COMPLETION, ALPACA, CHATML, USER_ASSISTANT)}


def prompt_format(name_or_path: StrPath) -> PromptFormat:
    """The built-in format of that name, or the own one of a `.toml` file.

    Raises ConfigError with the nearest name, or with the file and the field that is wrong.
    """
    name_or_path = str(name_or_path)
    if name_or_path.endswith(".toml"):
        try:
            fields = tomllib.loads(Path(name_or_path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(cannot_read(name_or_path, error)) from error
        return prompt_format_from(fields, name_or_path)
    if name_or_path not in PROMPT_FORMATS:
        raise ConfigError(
            f"{unknown_name('prompt format', name_or_path, PROMPT_FORMATS)}, "
            "or the path of a .toml file"
        )
    return PROMPT_FORMATS[name_or_path]


def prompt_format_from(fields: object, source: str) -> PromptFormat:
    """The format that `PromptFormat.to_dict` or a TOML file describes.

    Raises ConfigError, which names `source` and the first field that is wrong.
    """
    if not isinstance(fields, dict):
        raise ConfigError(
            f"{source}: expected a table with the texts of a prompt format, found {fields!r}"
        )
    try:
        return TypeAdapter(PromptFormat).validate_python(fields)
    except ValidationError as error:
        known = [field.name for field in fields_of(PromptFormat)]
        raise ConfigError(f"{source}: {wrong_field(error, known)}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
