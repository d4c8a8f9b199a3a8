"""Check a TEMPLATE: unknown variables, and what Go refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.errors import ModelfileError
from llmkit.modelfiles.go_engine import GoEngine
from llmkit.modelfiles.grammar import Finding, Instruction, nearest
from llmkit.modelfiles.prompt_format import Message

# What Ollama gives a template (template/template.go), and the fields of its messages and tools.
VARIABLES = (
    "System", "Prompt", "Response", "Suffix", "Messages", "Tools", "Think", "ThinkLevel",
    "IsThinkSet", "Query", "Document", "Instruction",
)  # fmt: skip
FIELDS = (
    "Role", "Content", "Thinking", "Images", "ToolCalls", "ToolName", "ToolCallID", "ID", "Type",
    "Function", "Name", "Index", "Arguments", "Description", "Parameters", "Properties",
    "Required", "Enum", "Items",
)  # fmt: skip
FUNCTIONS = ("json", "currentDate", "yesterdayDate", "toTypeScriptType")  # Ollama's, not Go's

_STRING = r'"(?:\\.|[^"\\\n])*"|`[^`]*`|' r"'(?:\\.|[^'\\\n])*'"
_ACTION = re.compile(
    rf"\{{\{{(?:-?\s*/\*.*?\*/\s*-?|(?P<body>(?:[^\"`'}}]|\}}(?!\}})|{_STRING})*+))\}}\}}",
    re.DOTALL,
)
_QUOTED = re.compile(_STRING)
_VARIABLE = re.compile(r"(?<![\w)\]])(\$?)\.([A-Za-z_]\w*)")
_KEYWORD = re.compile(r"-?\s*(else\s+with|\w*)")
_GO_LINE = re.compile(r"template: :(\d+):")
_NO_RESPONSE = "no {{ .Response }} outside of other actions"


@dataclass(frozen=True)
class Variable:
    """A name after a dot, and its position in the template.

    `inside`: in {{ range }} or {{ with }}, where the dot is no longer what Ollama gives;
    None in a {{ define }}, where it may be anything.
    """

    name: str
    index: int
    inside: bool | None


def variables(template: str) -> Iterator[Variable]:
    """Every variable of a template's actions, in order; not those of Go's own `$name`."""
    blocks: list[bool | None] = []  # whether each open block moves the dot; None: it is unknown
    for action in _ACTION.finditer(template):
        if action["body"] is None:  # a comment
            continue
        body = _QUOTED.sub(lambda text: " " * len(text[0]), action["body"])
        found = _KEYWORD.match(body)
        keyword = found[1].split() if found else []
        if keyword[:1] in (["else"], ["end"]) and blocks:
            above = blocks.pop()
            if keyword[0] == "else":
                blocks.append(keyword[1:] == ["with"])
                if above is None:
                    blocks[-1] = None
        inside = None if None in blocks else True in blocks
        if keyword[1:] == ["with"]:
            inside = None if None in blocks else True in blocks[:-1]
        for variable in _VARIABLE.finditer(body):
            at_root = variable[1] == "$" and inside is not None
            yield Variable(
                variable[2], action.start("body") + variable.start(), not at_root and inside
            )
        if keyword[:1] in (["range"], ["with"]):
            blocks.append(True)
        elif keyword[:1] == ["if"]:
            blocks.append(False)
        elif keyword[:1] in (["define"], ["block"]):
            blocks.append(None)


def plain_text(template: str) -> str:
    """A template with spaces in place of its actions."""
    return _ACTION.sub(lambda action: " " * len(action[0]), template)


def lint_template(instruction: Instruction, engine: GoEngine | None) -> Iterator[Finding]:
    """Findings in a TEMPLATE; without Go's engine only those that need no parsing."""
    template = instruction.value
    found = list(variables(template))
    for variable in found:
        yield from _unknown(variable, instruction)
    names = {variable.name for variable in found}
    if not names & {"Prompt", "Messages"}:
        yield Finding(
            "error", instruction.name_at, "TEMPLATE does not use the prompt",
            "add {{ .Prompt }} where the question goes",
        )  # fmt: skip
    message = go_error(template, engine) if engine else None
    if message is not None:
        line = _GO_LINE.search(message)
        lines = template.split("\n")[: int(line[1]) - 1] if line else []
        index = sum(len(text) + 1 for text in lines)
        yield Finding(
            "error",
            instruction.place(index),
            message,
            "Ollama refuses this template; fix this action",
        )


def go_error(template: str, engine: GoEngine) -> str | None:
    """Ollama's message for a template that Go cannot parse or run; None for a valid one."""
    message = _render_error(template, engine)
    if message is not None and _NO_RESPONSE in message:  # Ollama adds one, or finds it deeper
        message = _render_error(f"{template}{{{{ .Response }}}}", engine)
    if message is None or any(f'function "{name}" not defined' in message for name in FUNCTIONS):
        return None
    # With .Messages a template runs on other values than the engine has.
    if "executing" in message and any(v.name == "Messages" for v in variables(template)):
        return None
    return message


def _render_error(template: str, engine: GoEngine) -> str | None:
    try:
        engine.render(template, [Message("user", "Hello")], system="Be brief.")
    except ModelfileError as error:
        return str(error)
    return None


def _unknown(variable: Variable, instruction: Instruction) -> Iterator[Finding]:
    name, inside = variable.name, variable.inside
    if inside is None or name in (FIELDS if inside else VARIABLES):
        return
    if inside and name in VARIABLES:
        advice = f"inside {{{{ range }}}} and {{{{ with }}}} write $.{name}"
    elif not inside and name in FIELDS:
        advice = "only messages and tools have it: use it inside {{ range .Messages }}"
    else:
        advice = nearest(name, FIELDS if inside else VARIABLES).lstrip(",; ")
    where = " here" if name in VARIABLES + FIELDS else ""
    message = f"TEMPLATE has no variable .{name}{where}: Ollama renders <no value> or fails"
    yield Finding("error", instruction.place(variable.index), message, advice)
