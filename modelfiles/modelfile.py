"""Writing an Ollama Modelfile."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import LlmkitError


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says: the model, how a prompt is put together, where an answer ends."""

    source: str
    template: str
    stops: tuple[str, ...]
    num_ctx: int
    comment: tuple[str, ...] = ()


def render(modelfile: Modelfile) -> str:
    """The Modelfile's text. Raises LlmkitError for a value the grammar cannot express."""
    # A line end inside a comment would let the rest of it be read as an instruction.
    comment = [line for text in modelfile.comment for line in text.splitlines()]
    lines = [
        *(f"# {line}" for line in comment),
        "",
        f"FROM {quoted(modelfile.source)}",
        f"TEMPLATE {quoted(modelfile.template)}",
        *(f"PARAMETER stop {quoted(stop)}" for stop in modelfile.stops),
        f"PARAMETER num_ctx {modelfile.num_ctx}",
        "",
    ]
    return "\n".join(lines)


def quoted(value: str) -> str:
    """A value between quotes, which Ollama reads back as it is.

    There are no escapes: a value with a quote stands in triple quotes, and one that holds
    triple quotes or ends with a quote cannot be written. Non-printable characters are dropped
    by Ollama's parser, so they are refused.
    """
    for character in value:
        if not character.isprintable() and character not in "\n\t":
            raise LlmkitError(
                f"a Modelfile cannot hold the character U+{ord(character):04X}, which Ollama drops"
            )
    if '"' not in value:
        return f'"{value}"'
    if '"""' in value or value.endswith('"'):
        raise LlmkitError(f"a Modelfile cannot hold {value!r}: it has no escape for its quotes")
    return f'"""{value}"""'
