"""The prompt format of a file by another program, from its chat template."""

from __future__ import annotations

import gguf

from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.modelfile.facts import chat_template_of
from llmkit.modelfiles.prompt_format import Message, PromptFormat, Turn

# Private-use characters, which no template has.
_SYSTEM, _USER, _ANSWER, _MORE = (
    Message("system", "\ue010"),
    Message("user", "\ue011"),
    Message("assistant", "\ue012"),
    Message("user", "\ue013"),
)
_CONVERSATIONS = ((_USER,), (_USER, _ANSWER, _MORE))
_SPECIAL = {int(gguf.TokenType.CONTROL), int(gguf.TokenType.USER_DEFINED)}


def derived_format(file: GGUFFile) -> PromptFormat | None:
    """A format that renders what the file's chat template renders; None where there is none."""
    template = chat_template_of(file)
    return None if template is None else format_of(template, _special_tokens(file))


def format_of(template: ChatTemplate, special: set[str]) -> PromptFormat | None:
    """A format that renders what a template renders, with these special tokens in its texts.

    Found by rendering conversations and cutting them at the messages. A template that refuses
    system messages gets no text around them. None where a format cannot say what it does.
    """
    try:
        form = _fitted(template, special)
    except (GGUFError, ValueError, TypeError):  # templates run as Python does
        return None
    conversations = [*_CONVERSATIONS]
    if _takes_system(template):
        conversations += [(_SYSTEM, *messages) for messages in _CONVERSATIONS]
    same = (form.text(talk, for_answer=True) == template.text(talk) for talk in conversations)
    return form if all(same) else None


def _fitted(template: ChatTemplate, special: set[str]) -> PromptFormat:
    """Raises ValueError where the messages do not stand in the rendered text."""
    first, _ = _cut(template, _USER)
    _, assistant_before, between, _ = _cut(template, _USER, _ANSWER, _MORE)
    end = max((token for token in special if between.startswith(token)), key=len)
    between = between.removeprefix(end)
    system, default = Turn(), ""
    if _takes_system(template):
        system_before, after_system, _ = _cut(template, _SYSTEM, _USER)
        user_before = _from_token(_common_end(first, between, after_system), special)
        system = Turn(system_before, after_system.removesuffix(user_before))
        if first.startswith(system.before) and first.endswith(after_system):
            default = first[len(system.before) : len(first) - len(after_system)]
    else:
        user_before = _from_token(_common_end(first, between), special)
    after_answer = between.removesuffix(user_before)
    texts = (system.before, system.after, user_before, assistant_before, after_answer)
    return PromptFormat(
        "the file's chat template",
        system=system,
        user=Turn(user_before, ""),
        assistant=Turn(assistant_before, after_answer),
        end=end,
        special_tokens=tuple(
            sorted(token for token in special - {end} if any(token in text for text in texts))
        ),
        default_system=default,
    )


def _cut(template: ChatTemplate, *messages: Message) -> list[str]:
    """The text before each message, and after the last."""
    rest, parts = template.text(messages), []
    for message in messages:
        before, found, rest = rest.partition(message.content)
        if not found:
            raise ValueError
        parts.append(before)
    return [*parts, rest]


def _takes_system(template: ChatTemplate) -> bool:
    try:
        return _SYSTEM.content in template.text((_SYSTEM, _USER))
    except GGUFError:
        return False


def _common_end(*texts: str) -> str:
    """The longest text that all of them end with."""
    shortest = min(texts, key=len)
    ends = (shortest[start:] for start in range(len(shortest) + 1))
    return next(end for end in ends if all(text.endswith(end) for text in texts))


def _from_token(text: str, special: set[str]) -> str:
    """From the first special token on: what is before belongs to the message before."""
    starts = [text.index(token) for token in special if token in text]
    return text[min(starts, default=0) :]


def _special_tokens(file: GGUFFile) -> set[str]:
    tokens = file.metadata.get(gguf.Keys.Tokenizer.LIST, [])
    types = file.metadata.get(gguf.Keys.Tokenizer.TOKEN_TYPE, [])
    return {token for token, kind in zip(tokens, types, strict=False) if kind in _SPECIAL and token}
