"""What an Ollama Modelfile says, and its text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llmkit.errors import ModelfileError
from llmkit.modelfiles.grammar import ROLE_ERROR, ROLES
from llmkit.modelfiles.parameters import KINDS, Parameters, written_number
from llmkit.modelfiles.prompt_format import Message
from llmkit.modelfiles.quoting import quoted

# What golang.org/x/mod/semver takes, which also takes 1 and 1.2; a v may stand before it.
_NUMBER = r"(0|[1-9][0-9]*)"
_PRERELEASE = rf"({_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"v?({_NUMBER}(\.{_NUMBER}(\.{_NUMBER}(-{_PRERELEASE}(\.{_PRERELEASE})*)?"
    r"(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?)?)?)"
)


@dataclass(frozen=True)
class Modelfile:
    """A model for Ollama: its files, its texts and its settings; None leaves one to Ollama."""

    source: str  # FROM: a file, a folder or a model's name
    more_sources: tuple[str, ...] = ()  # further FROM lines: Ollama takes the files of all
    adapter: str | None = None
    drafts: tuple[str, ...] = ()
    template: str | None = None
    system: str | None = None
    messages: tuple[Message, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None  # Ollama's lowest version, such as 0.14.0
    licenses: tuple[str, ...] = ()
    comment: tuple[str, ...] = ()


def render(modelfile: Modelfile) -> str:
    """The Modelfile's text, which Ollama reads back as it is.

    Raises ModelfileError for a value that the grammar cannot express.
    """
    # A line end inside a comment would let the rest of it be read as an instruction.
    comment = [line for text in modelfile.comment for line in text.splitlines() or [""]]
    lines = [
        *(f"# {line}".rstrip() for line in comment),
        *([""] if comment else []),
        *_lines("FROM", modelfile.source, *modelfile.more_sources),
        *_lines("ADAPTER", modelfile.adapter),
        *_lines("DRAFT", *modelfile.drafts),
        *_lines("TEMPLATE", modelfile.template),
        *_lines("SYSTEM", modelfile.system),
        *(line for message in modelfile.messages for line in _message(message)),
        *_parameters(modelfile.parameters),
        *_lines("RENDERER", modelfile.renderer),
        *_lines("PARSER", modelfile.parser),
        *_lines("REQUIRES", None if modelfile.requires is None else version(modelfile.requires)),
        *_lines("LICENSE", *modelfile.licenses),
        "",
    ]
    return "\n".join(lines)


def version(text: str) -> str:
    """A version without its v. Raises ModelfileError with Ollama's message for what is none."""
    found = _VERSION.fullmatch(text)
    if not found:
        raise ModelfileError("requires must be a valid semver (e.g. 0.14.0)")
    return found[1]


def _lines(instruction: str, *values: str | None) -> list[str]:
    try:
        return [f"{instruction} {quoted(value)}" for value in values if value is not None]
    except ModelfileError as error:
        raise ModelfileError(f"{instruction}: {error}") from error


def _message(message: Message) -> list[str]:
    if message.role not in ROLES:
        raise ModelfileError(f"{ROLE_ERROR}, not {message.role!r}")
    return _lines(f"MESSAGE {message.role}", message.content)


def _parameters(parameters: Parameters) -> list[str]:
    lines = _lines("PARAMETER stop", *parameters.stop)
    for name, kind in KINDS.items():
        number = getattr(parameters, name)
        if kind != "text" and number is not None:
            lines.append(f"PARAMETER {name} {written_number(name, number)}")
    return lines
