"""What in a Modelfile's text will surprise its user, beyond what Ollama refuses."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.modelfiles.go_engine import GoEngine
from llmkit.modelfiles.grammar import Finding, Instruction, Place
from llmkit.modelfiles.reading import ParsedModelfile, kind_of
from llmkit.modelfiles.template_lint import lint_template, plain_text, variables

_ESCAPES = ("\\n", "\\t", '\\"')


def lint_text(parsed: ParsedModelfile, engine: GoEngine | None = None) -> Iterator[Finding]:
    """Findings in a Modelfile that Ollama takes: what can be said without its files.

    With `engine` its TEMPLATE is parsed and run by Go.
    """
    yield from parsed.warnings
    yield from _escapes(parsed)
    template = instruction_of(parsed, "template")
    if template is None:
        return
    yield from lint_template(template, engine)
    system = instruction_of(parsed, "system")
    names = {variable.name for variable in variables(template.value)}
    if system is not None and system.value and not names & {"System", "Messages"}:
        yield Finding(
            "warning", system.name_at, "TEMPLATE ignores this SYSTEM text",
            "add {{ .System }} to TEMPLATE",
        )  # fmt: skip


def instruction_of(
    parsed: ParsedModelfile, name: str, argument: str | None = None
) -> Instruction | None:
    """The last instruction of that name, which is the one that counts."""
    return next(reversed(instructions_of(parsed, name, argument)), None)


def instructions_of(
    parsed: ParsedModelfile, name: str, argument: str | None = None
) -> list[Instruction]:
    """All instructions of that name, and of that argument if one is given."""
    return [
        instruction
        for instruction in parsed.instructions
        if kind_of(instruction) == name and argument in (None, instruction.argument)
    ]


def place_of(parsed: ParsedModelfile, name: str, argument: str | None = None) -> Place:
    """Where that instruction stands; else the file's beginning."""
    instruction = instruction_of(parsed, name, argument)
    return instruction.name_at if instruction else Place(parsed.instructions[0].name_at.path, 1, 1)


def _escapes(parsed: ParsedModelfile) -> Iterator[Finding]:
    for instruction in parsed.instructions:
        kind, value = kind_of(instruction), instruction.value
        is_stop = (kind, instruction.argument) == ("parameter", "stop")
        if not is_stop and kind not in ("template", "system", "message"):
            continue
        text = plain_text(value) if kind == "template" else value
        for escape in _ESCAPES:
            if escape in text:
                message = f"Modelfiles have no escapes: {escape} stays two characters"
                advice = 'write the character itself, between " " or """ """'
                yield Finding("warning", instruction.place(text.index(escape)), message, advice)
