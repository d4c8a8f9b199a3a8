"""Prompt formats: how text for a model is put together."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class PromptFormat:
    """A format's name and its rendering as an Ollama TEMPLATE (Go template syntax)."""

    name: str
    template: str


# A base model goes on from the bare prompt. Ollama cuts everything after .Response in the last
# turn, so earlier turns are joined as plain text.
COMPLETION = PromptFormat("completion", "{{ .Prompt }}{{ .Response }}")

PROMPT_FORMATS = {COMPLETION.name: COMPLETION}


def prompt_format(name: str) -> PromptFormat:
    """The format of that name. Raises ConfigError with the nearest name if there is none."""
    if name not in PROMPT_FORMATS:
        raise ConfigError(unknown_name("prompt format", name, PROMPT_FORMATS))
    return PROMPT_FORMATS[name]
