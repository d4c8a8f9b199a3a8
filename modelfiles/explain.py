"""A Modelfile in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import KINDS
from llmkit.modelfiles.template_lint import variables

_SHOWN = 200

# What each PARAMETER does, after Ollama's docs/modelfile.md and llama.cpp's sampling.
MEANINGS = {
    "num_keep": "when the context is full, so many tokens at its beginning stay",
    "seed": "the same seed and prompt give the same answer",
    "num_predict": "an answer ends after so many tokens",
    "top_k": "the next token is one of so many likeliest ones",
    "top_p": "the next token is one of the likeliest that together have this probability",
    "min_p": "no token with less than this share of the likeliest one's probability",
    "typical_p": "only tokens that surprise about as much as is usual here, up to this probability",
    "repeat_last_n": "repetitions count within so many last tokens",
    "temperature": "how freely tokens are drawn; at 0 always the likeliest one",
    "repeat_penalty": "above 1 makes repeated tokens less likely",
    "presence_penalty": "above 0 makes tokens less likely that were there",
    "frequency_penalty": "above 0 makes tokens less likely each time they were there",
    "stop": "an answer ends where this text begins",
    "num_ctx": "prompt and answer have room for so many tokens",
    "num_batch": "a prompt is read so many tokens at a time",
    "num_gpu": "so many layers go to the GPU",
    "main_gpu": "the GPU that holds what is not split",
    "use_mmap": "whether the file is mapped into memory instead of read",
    "num_thread": "so many CPU threads compute",
    "draft_num_predict": "a draft model guesses so many tokens ahead",
}
# Ollama's own, where a Modelfile says nothing.
DEFAULTS = {
    "temperature": "0.8", "top_k": "40", "top_p": "0.9", "repeat_penalty": "1.0", "num_keep": "4",
    "num_predict": "-1: until the model stops, at most 10 times the context",
    "num_ctx": "by memory, at most the model's context",
}  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What one thing in a Modelfile does."""

    subject: str
    text: str


def explain(modelfile: Modelfile) -> Iterator[Explanation]:
    """What Ollama does with each thing that a Modelfile says, and with what it leaves out."""
    for source in (modelfile.source, *modelfile.more_sources):
        yield Explanation("FROM", f"the model is {source}")
    if modelfile.adapter is not None:
        yield Explanation("ADAPTER", f"the LoRA adapter {modelfile.adapter} is added to it")
    for draft in modelfile.drafts:
        yield Explanation("DRAFT", f"the smaller model {draft} guesses tokens ahead")
    yield Explanation("TEMPLATE", _template(modelfile.template))
    yield Explanation("SYSTEM", _system(modelfile))
    for message in modelfile.messages:
        text = f"before every conversation the {message.role} has said {_shown(message.content)}"
        yield Explanation("MESSAGE", text)
    yield from _parameters(modelfile)
    for name, value, does in (
        ("RENDERER", modelfile.renderer, "prompts are written by Ollama's built-in"),
        ("PARSER", modelfile.parser, "answers are read by Ollama's built-in"),
        ("REQUIRES", modelfile.requires, "older than this, Ollama refuses it:"),
    ):
        if value is not None:
            yield Explanation(name, f"{does} {value}")
    for text in modelfile.licenses:
        yield Explanation("LICENSE", f"shown with the model: {_shown(text)}")


def _template(template: str | None) -> str:
    if template is None:
        return "none: Ollama writes prompts by the file's chat template, or else in ChatML"
    names = {variable.name for variable in variables(template)}
    order = "once for the whole conversation" if "Messages" in names else "once for each turn"
    used = ", ".join(sorted(names)) or "nothing"
    return f"writes the prompt, {order}, of {used}: {_shown(template)}"


def _system(modelfile: Modelfile) -> str:
    if modelfile.system is None:
        return "none: without one of the user's own, a prompt has no system text"
    if not modelfile.system:
        return "empty: a prompt has no system text"
    return f"stands before every conversation: {_shown(modelfile.system)}"


def _parameters(modelfile: Modelfile) -> Iterator[Explanation]:
    for stop in modelfile.parameters.stop:
        yield Explanation("stop", f"{_shown(stop)}: {MEANINGS['stop']}")
    if not modelfile.parameters.stop:
        yield Explanation("stop", "none: an answer ends with the model's end token alone")
    for name in KINDS:
        value = getattr(modelfile.parameters, name)
        if name == "stop":
            continue
        if value is not None:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            yield Explanation(name, f"{shown}: {MEANINGS[name]}")
        elif name in DEFAULTS:
            yield Explanation(name, f"left to Ollama, {DEFAULTS[name]}: {MEANINGS[name]}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
