"""What in a Modelfile's text will surprise its user, beyond what Ollama refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from llmkit.errors import ModelfileError
from llmkit.modelfiles.go_engine import find_go, go_engine
from llmkit.modelfiles.grammar import Place, nearest
from llmkit.modelfiles.prompt_format import Message
from llmkit.modelfiles.reading import ParsedModelfile

# What Ollama gives a template (template/template.go), and the fields of its messages and tools.
VARIABLES = (
    "System", "Prompt", "Response", "Suffix", "Messages", "Tools", "Role", "Content", "Thinking",
    "Think", "ThinkLevel", "IsThinkSet", "ToolCalls", "ToolName", "ToolCallID", "Function", "Name",
    "Arguments", "Description", "Parameters", "Properties", "Required", "Type", "Images",
)  # fmt: skip
_ACTION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_VARIABLE = re.compile(r"(?<![\w)\]])\$?\.([A-Za-z]\w*)")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`')

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something to mend, or to know; where it stands, and what to do."""

    level: Level
    place: str  # PATH:LINE:COLUMN
    message: str


def lint_text(parsed: ParsedModelfile) -> Iterator[Finding]:
    """Findings in a Modelfile that Ollama takes: what can be said without its files."""
    for warning in parsed.warnings:
        place, _, message = warning.partition(": ")
        yield Finding("warning", place, message)
    template = parsed.modelfile.template
    if template is None:
        return
    place = str(place_of(parsed, "template"))
    for name in dict.fromkeys(_variables(template)):
        if name not in VARIABLES:
            advice = nearest(name, VARIABLES)
            yield Finding("error", place, f"TEMPLATE has no variable .{name}{advice}")
    yield from _parse_findings(template, place)


def place_of(parsed: ParsedModelfile, name: str, argument: str = "") -> Place:
    """Where an instruction stands, the last one of its name; else the file's beginning."""
    for instruction in reversed(parsed.instructions):
        if instruction.name == name and instruction.argument in ("", argument):
            return instruction.name_at
    first = parsed.instructions[0].name_at
    return Place(first.path, 1, 1)


def _variables(template: str) -> Iterator[str]:
    for action in _ACTION.findall(template):
        yield from _VARIABLE.findall(_QUOTED.sub('""', action))


def _parse_findings(template: str, place: str) -> Iterator[Finding]:
    compiler = find_go()
    if compiler is None:
        return
    with go_engine(compiler) as engine:
        try:
            engine.render(template, [Message("user", "Hello")])
        except ModelfileError as error:
            if ".Messages" not in template:  # those run once, with other variables
                yield Finding("error", place, str(error))
