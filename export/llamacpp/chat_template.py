"""A GGUF file's chat template, run as its users run it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmkit.errors import GGUFError
from llmkit.modelfiles.prompt_format import Message

if TYPE_CHECKING:
    from llmkit.export.llamacpp.runtime import LlamaCpp

# Stands for a message while the template runs; private-use characters, one pair per message.
_PLACE = "\ue000{}\ue001"


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja source of `tokenizer.chat_template`."""

    source: str
    bos: str = ""  # what `bos_token` and `eos_token` are in it
    eos: str = ""

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt as text, up to where the answer begins. Raises GGUFError for a bad template.

        Rendered with the settings that Hugging Face and llama.cpp use.
        """
        fields = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._compiled.render(
                messages=fields,
                add_generation_prompt=True,
                bos_token=self.bos,
                eos_token=self.eos,
            )
        except jinja2.TemplateError as error:
            raise GGUFError(f"cannot render the chat template of the GGUF file: {error}") from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = datetime.now().strftime
        return environment.from_string(self.source)

    def prompt_ids(self, messages: Sequence[Message], llama: LlamaCpp) -> list[int]:
        """The prompt's ids. Special tokens are the template's; in a message they are text."""
        places = [_PLACE.format(number) for number in range(len(messages))]
        marked = [
            Message(message.role, place) for message, place in zip(messages, places, strict=True)
        ]
        special = {text: token_id for text, token_id in llama.control_tokens.items() if text}
        tokens = sorted(special, key=len, reverse=True)  # a token may begin with another one
        text = self.text(marked)
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
        ids: list[int] = []
        for part in parts:
            if part in special:
                ids.append(special[part])
                continue
            for message, place in zip(messages, places, strict=True):
                part = part.replace(place, message.content)
            ids += llama.tokenize(part)
        return ids


def _raise(message: str) -> NoReturn:
    """How a template refuses messages."""
    raise jinja2.TemplateError(message)
