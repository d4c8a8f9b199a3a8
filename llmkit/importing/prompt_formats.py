"""The prompt format of an imported model, from its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmkit.errors import CheckpointError
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.modelfile.derived_format import format_of
from llmkit.files import cannot_read
from llmkit.importing.facts import ImportOptions
from llmkit.importing.source.source import inside
from llmkit.modelfiles.prompt_format import (
    COMPLETION,
    END_OF_TEXT,
    PROMPT_FORMATS,
    PromptFormat,
    prompt_format,
)
from llmkit.tokenizer import Tokenizer


def find_prompt_format(
    options: ImportOptions, template: object, end: str, tokenizer: Tokenizer
) -> tuple[PromptFormat, list[str]]:
    """The format that the user names, or the one that renders a Jinja template; with notes.

    `end`: the special token that ends texts. Without a template the model completes. Raises
    ConfigError for a format with tokens that the tokenizer lacks.
    """
    if options.prompt_format is not None:
        form = _with_end(prompt_format(options.prompt_format), end)
        for token in form.stops:
            tokenizer.special_id(token)  # raises where there is none
        return form, []
    if not isinstance(template, str):
        return replace(COMPLETION, end=end), []
    special = {tokenizer.tokens[token_id] for token_id in tokenizer.special_ids}
    for form in (_with_end(known, end) for known in PROMPT_FORMATS.values()):
        if template == form.chat_template and special.issuperset(form.stops):
            return form, []
    found = format_of(ChatTemplate(template, eos=end), special)
    if found is not None:
        return found, []
    note = (
        "the chat template cannot be expressed as a prompt format, so the checkpoint completes "
        "text; give --prompt-format"
    )
    return replace(COMPLETION, end=end), [note]


def chat_template_in(folder: Path) -> str | None:
    """The template that transformers reads: chat_template.jinja or in tokenizer_config.json.

    Raises CheckpointError for a file that cannot be read.
    """
    path = inside(folder, "chat_template.jinja")
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
        path = inside(folder, "tokenizer_config.json")
        if not path.is_file():
            return None
        return next(_templates(json.loads(path.read_text(encoding="utf-8"))), None)
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_read(path, error)) from error


def _templates(content: object) -> Iterator[str]:
    """One template, or `default` of several with names."""
    found = content.get("chat_template") if isinstance(content, dict) else None
    named = found if isinstance(found, list) else [{"name": "default", "template": found}]
    for each in named:
        text = each.get("template") if isinstance(each, dict) else None
        if isinstance(text, str) and each.get("name") == "default":
            yield text


def _with_end(form: PromptFormat, end: str) -> PromptFormat:
    """A format without an end token of its own, with the model's."""
    return replace(form, end=end) if form.end == END_OF_TEXT else form
