"""Reading a Modelfile as Ollama does: what it says, or why Ollama refuses it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

from llmkit.errors import ModelfileError
from llmkit.files import cannot_read
from llmkit.modelfiles.grammar import (
    INSTRUCTIONS,
    ROLE_ERROR,
    ROLES,
    Finding,
    Instruction,
    Place,
    RefusalError,
    Source,
    decode,
    nearest,
    parts,
    refusal,
)
from llmkit.modelfiles.modelfile import Modelfile, version
from llmkit.modelfiles.parameters import DEPRECATED, KINDS, RANGES, Parameters, read_number
from llmkit.modelfiles.prompt_format import Message

_EXAMPLES = {"float": "a number such as 0.8", "int": "a whole number", "bool": "true or false"}
# A PARAMETER line is stored as an instruction of that name, so it also sets these.
_ALSO_INSTRUCTIONS = {"model": "from"} | {
    name: name for name in INSTRUCTIONS if name not in ("from", "parameter")
}


@dataclass(frozen=True)
class ParsedModelfile:
    """What a Modelfile says, its instructions in order, and what deserves a warning."""

    modelfile: Modelfile
    instructions: tuple[Instruction, ...]
    warnings: tuple[Finding, ...]


def read_modelfile(path: Path) -> ParsedModelfile:
    """Read a Modelfile as Ollama does. Raises ModelfileError, with line and column."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelfileError(cannot_read(path, error)) from error
    if data.startswith(b"GGUF"):
        raise ModelfileError(f"{path} is a GGUF file; give the Modelfile that names it")
    return parse(decode(data), str(path))


def parse(text: str, path: str = "Modelfile") -> ParsedModelfile:
    """What Ollama reads in the text of a Modelfile.

    Raises RefusalError for what Ollama refuses: `PATH:LINE:COLUMN: `, Ollama's message, advice.
    """
    read = list(parts(Source(text, path)))
    instructions = tuple(part for part in read if isinstance(part, Instruction))
    refusals = [part for part in read if isinstance(part, RefusalError)]
    # A refused line may have been the FROM line.
    if not refusals and not any(kind_of(instruction) == "from" for instruction in instructions):
        advice = "; add one that names the model, for example FROM ./model.gguf"
        refusals.append(refusal(Place(path, 1, 1), "no FROM line", advice))
    reader = _Reader()
    for instruction in instructions:
        try:
            reader.take(instruction)
        except RefusalError as refused:
            refusals.append(refused)
    if refusals:
        first, *others = refusals
        first.others = (*(other.finding for other in others), *reader.warnings)
        raise first
    comment = tuple(part.removeprefix(" ") for part in read if isinstance(part, str))
    return ParsedModelfile(reader.modelfile(comment), instructions, tuple(reader.warnings))


class _Reader:
    """What the instructions so far say; as in Ollama the last one of a kind counts."""

    def __init__(self) -> None:
        self.warnings: list[Finding] = []
        self._texts: dict[str, list[str]] = {}
        self._messages: list[Message] = []
        self._numbers: dict[str, float | int | bool] = {}
        self._lines: dict[str, int] = {}  # of what a later instruction would replace

    def take(self, instruction: Instruction) -> None:
        kind = kind_of(instruction)
        if instruction.dropped:
            numbers = ", ".join(dict.fromkeys(f"U+{ord(c):04X}" for c in instruction.dropped))
            self._warn(
                instruction.value_at,
                f"Ollama drops {numbers} from this value",
                "remove these characters: they are not printable",
            )
        if kind == "parameter":
            self._parameter(instruction)
        elif kind == "message":
            self._messages.append(_message(instruction))
        elif kind == "requires":
            self._replace(kind.upper(), instruction)
            self._texts[kind] = [_checked_version(instruction)]
        elif kind in ("from", "draft", "license"):
            self._texts.setdefault(kind, []).append(instruction.value)
        else:
            self._replace(kind.upper(), instruction)
            self._texts[kind] = [instruction.value]

    def modelfile(self, comment: tuple[str, ...]) -> Modelfile:
        sources = self._texts["from"]
        return Modelfile(
            source=sources[0],
            more_sources=tuple(sources[1:]),
            adapter=self._last("adapter"),
            drafts=self._all("draft"),
            template=self._last("template"),
            system=self._last("system"),
            messages=tuple(self._messages),
            parameters=Parameters(stop=self._all("stop"), **self._numbers),  # type: ignore[arg-type]
            renderer=self._last("renderer"),
            parser=self._last("parser"),
            requires=self._last("requires"),
            licenses=self._all("license"),
            comment=comment,
        )

    def _parameter(self, instruction: Instruction) -> None:
        name = instruction.argument
        if name in DEPRECATED:
            self._warn(
                instruction.argument_at,
                f"parameter {name} is deprecated and ignored",
                "remove the line",
            )
        elif name not in KINDS:
            raise refusal(
                instruction.argument_at,
                f"unknown parameter '{name}'",
                nearest(name, tuple(KINDS)),
            )
        elif name == "stop":
            self._texts.setdefault(name, []).append(instruction.value)
            if not instruction.value:
                message = "Ollama accepts this stop string, but it is empty"
                self._warn(instruction.argument_at, message, "remove the line")
        else:
            self._replace(f"PARAMETER {name}", instruction)
            number = self._numbers[name] = _number(instruction)
            low, high = RANGES.get(name, (-inf, inf))
            if not low <= number <= high:
                wanted = f"{low} or more" if high == inf else f"{low} to {high}"
                message = f"Ollama accepts {name} {instruction.value}, but it is out of range"
                self._warn(instruction.value_at, message, f"use {wanted}")

    def _replace(self, what: str, instruction: Instruction) -> None:
        if what in self._lines:
            self._warn(
                instruction.name_at,
                f"{what} overrides line {self._lines[what]}",
                "keep one of them",
            )
        self._lines[what] = instruction.name_at.line

    def _warn(self, place: Place, message: str, advice: str) -> None:
        self.warnings.append(Finding("warning", place, message, advice))

    def _last(self, kind: str) -> str | None:
        return self._texts[kind][-1] if kind in self._texts else None

    def _all(self, kind: str) -> tuple[str, ...]:
        return tuple(self._texts.get(kind, ()))


def kind_of(instruction: Instruction) -> str:
    """The instruction's name, or the one that a PARAMETER line stands for."""
    if instruction.name == "parameter":
        return _ALSO_INSTRUCTIONS.get(instruction.argument, "parameter")
    return instruction.name


def _message(instruction: Instruction) -> Message:
    role, content = instruction.argument, instruction.value
    if instruction.name == "parameter":  # PARAMETER message user: hello
        role, _, content = content.partition(": ")
    for known in ROLES:
        if role == known:
            return Message(known, content)
    raise refusal(instruction.value_at, ROLE_ERROR, nearest(role, ROLES))


def _checked_version(instruction: Instruction) -> str:
    try:
        return version(instruction.value)
    except ModelfileError as error:
        raise refusal(instruction.value_at, str(error), f", not {instruction.value!r}") from None


def _number(instruction: Instruction) -> float | int | bool:
    name, text = instruction.argument, instruction.value
    try:
        return read_number(KINDS[name], text)
    except ModelfileError as error:
        advice = f"; {name} takes {_EXAMPLES[KINDS[name]]}"
        if "#" in text:
            advice += "; put the comment on its own line"
        raise refusal(instruction.value_at, str(error), advice) from None
