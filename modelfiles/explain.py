"""Explain a Modelfile line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import KINDS
from llmkit.modelfiles.template_lint import variables

_SHOWN = 200

# What each PARAMETER does, after Ollama's docs/modelfile.md and llama.cpp's sampling.
MEANINGS = {
    "num_keep": "number of tokens at the start that stay when the context is full",
    "seed": "the same seed and prompt give the same answer",
    "num_predict": "maximum number of tokens in an answer",
    "top_k": "sample only from this many most likely tokens",
    "top_p": "sample only from the most likely tokens whose probabilities add up to this",
    "min_p": "drop tokens below this fraction of the most likely token's probability",
    "typical_p": "locally typical sampling: prefer tokens of average surprise; 1 turns it off",
    "repeat_last_n": "number of last tokens in which repetitions are penalized",
    "temperature": "randomness of sampling; 0 always picks the most likely token",
    "repeat_penalty": "above 1 makes repeated tokens less likely",
    "presence_penalty": "above 0 makes tokens that already occurred less likely",
    "frequency_penalty": "above 0 makes tokens less likely with each occurrence",
    "stop": "the answer ends before this text",
    "num_ctx": "context size in tokens, prompt and answer together",
    "num_batch": "number of prompt tokens processed at a time",
    "num_gpu": "number of layers on the GPU",
    "main_gpu": "the GPU for data that is not split across GPUs",
    "use_mmap": "whether to map the file into memory instead of reading it",
    "num_thread": "number of CPU threads",
    "draft_num_predict": "number of tokens that the draft model predicts ahead",
}
# What Ollama uses where a Modelfile sets nothing.
DEFAULTS = {
    "temperature": "0.8", "top_k": "40", "top_p": "0.9", "repeat_penalty": "1.0", "num_keep": "4",
    "num_predict": "-1 (until the model stops, at most 10 times the context)",
    "num_ctx": "a size that fits memory, at most the model's context",
}  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What one instruction or parameter does."""

    subject: str
    text: str


def explain(modelfile: Modelfile) -> Iterator[Explanation]:
    """What each instruction and parameter does, and what Ollama uses where one is missing."""
    for source in (modelfile.source, *modelfile.more_sources):
        yield Explanation("FROM", f"the model is {source}")
    if modelfile.adapter is not None:
        yield Explanation(
            "ADAPTER", f"the LoRA adapter {modelfile.adapter} is applied to the model"
        )
    for draft in modelfile.drafts:
        yield Explanation("DRAFT", f"the smaller model {draft} predicts tokens ahead")
    yield Explanation("TEMPLATE", _template(modelfile.template))
    yield Explanation("SYSTEM", _system(modelfile))
    for message in modelfile.messages:
        text = (
            f"every conversation starts with this {message.role} message: {_shown(message.content)}"
        )
        yield Explanation("MESSAGE", text)
    yield from _parameters(modelfile)
    for name, value, does in (
        ("RENDERER", modelfile.renderer, "Ollama writes prompts with its built-in renderer"),
        ("PARSER", modelfile.parser, "Ollama reads answers with its built-in parser"),
        ("REQUIRES", modelfile.requires, "oldest Ollama version that accepts this model:"),
    ):
        if value is not None:
            yield Explanation(name, f"{does} {value}")
    for text in modelfile.licenses:
        yield Explanation("LICENSE", f"license text: {_shown(text)}")


def _template(template: str | None) -> str:
    if template is None:
        return "none: Ollama uses the chat template in the GGUF file, otherwise ChatML"
    names = {variable.name for variable in variables(template)}
    order = "once for the whole conversation" if "Messages" in names else "once for each turn"
    used = ", ".join(sorted(names)) or "nothing"
    return f"builds the prompt {order} from {used}: {_shown(template)}"


def _system(modelfile: Modelfile) -> str:
    if modelfile.system is None:
        return "none: prompts have no system text unless the user gives one"
    if not modelfile.system:
        return "empty: prompts have no system text"
    return f"every conversation starts with this system text: {_shown(modelfile.system)}"


def _parameters(modelfile: Modelfile) -> Iterator[Explanation]:
    for stop in modelfile.parameters.stop:
        yield Explanation("stop", f"{_shown(stop)}: {MEANINGS['stop']}")
    if not modelfile.parameters.stop:
        yield Explanation("stop", "none: an answer ends only at the model's end token")
    for name in KINDS:
        value = getattr(modelfile.parameters, name)
        if name == "stop":
            continue
        if value is not None:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            yield Explanation(name, f"{shown}: {MEANINGS[name]}")
        elif name in DEFAULTS:
            yield Explanation(name, f"not set, Ollama uses {DEFAULTS[name]}: {MEANINGS[name]}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
