"""Whether every program renders a prompt as training did.

Compared are training, the GGUF's Jinja template, the Modelfile's TEMPLATE and llama.cpp's tokens of
the text. Go's own engine runs TEMPLATE; without a Go compiler, TEMPLATE must equal, character by
character, the one that llmkit writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import LlmkitError
from llmkit.export.check import Outcome, counted
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.target import VerifyTarget
from llmkit.finetuning.examples import encode_prompt
from llmkit.finetuning.held_out import held_out_questions
from llmkit.modelfiles.go_engine import GoEngine, any_go_engine
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.prompt_format import Message, PromptFormat

N_OWN = 20  # questions of the user's own
_SHOWN = 24
HOSTILE = (
    'She said "hi" and \'bye\', """thrice""", `once`',
    "{{ .Prompt }} {{- x -}} {{/* y */}} }} {",
    "{% raw %} {{ messages }} {# z #} %}",
    "  leading and trailing spaces  ",
    "two\nlines\n\nand more\n",
    "\\n \\ %s $HOME é 中文 😀",
)


@dataclass(frozen=True)
class Rendered:
    """Messages that end with a question, and what kind of conversation it is."""

    kind: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Rendering:
    """One of the programs: prompt text and, where it has its own, token ids."""

    name: str
    text: Callable[[Sequence[Message]], str]


def prompt_check(target: VerifyTarget, llama: LlamaCpp, modelfile: Modelfile | None) -> Outcome:
    """Compare all renderings on conversations of every kind. Value: prompts that differ."""
    source = target.checkpoint
    form = source.prompt_format
    found = conversations(source)
    with any_go_engine() if modelfile else nullcontext() as engine:
        faults, renderings = [], []
        if llama.chat_template is None and target.is_foreign and form.is_completion:
            pass  # a base model needs none: its prompt is the text itself
        elif llama.chat_template is None:
            faults.append("the GGUF has no tokenizer.chat_template; export it again")
        else:
            renderings.append(
                _Rendering("the GGUF's Jinja", ChatTemplate(llama.chat_template).text)
            )
        if modelfile and engine:
            renderings.append(_Rendering("TEMPLATE", _go_text(engine, modelfile)))
        elif modelfile:
            faults += _letter_faults(modelfile, form)
        for conversation in found:
            faults += _faults(conversation, source, llama, renderings)
    names = ["training", *(rendering.name for rendering in renderings), "llama.cpp"]
    if modelfile and not engine:
        names.append("TEMPLATE (compared as text: no working Go compiler)")
    fine = f"{len(found)} conversations are equal in {', '.join(names)}"
    more = f"; {len(faults) - 1} more prompts differ" if len(faults) > 1 else ""
    return counted(len(faults), fine, "".join(faults[:1]) + more)


def conversations(source: Checkpoint) -> list[Rendered]:
    """Single turns, system text, several turns, hostile content and the user's own questions."""
    form = source.prompt_format
    question, answer = Message("user", "Who is it?"), Message("assistant", "It is Ida.")
    system = Message("system", "Answer in one sentence.")
    found = [
        Rendered("one question", (question,)),
        Rendered("a system text", (system, question)),
        Rendered("an empty system text", (Message("system", ""), question)),
        *(Rendered("hostile content", (system, Message("user", text))) for text in HOSTILE),
        Rendered("the text of special tokens", (Message("user", "".join(form.stops)),)),
    ]
    if not form.is_completion:  # where a prompt runs straight into the answer there are no turns
        turns = (question, answer, Message("user", "And then?"))
        found += [
            Rendered("two turns", turns),
            Rendered("a system text and two turns", (system, *turns)),
            *(
                Rendered("hostile turns", (Message("user", text), answer, Message("user", text)))
                for text in HOSTILE
            ),
        ]
    own = held_out_questions(source)[:N_OWN]
    return found + [Rendered("a held-out question", messages) for messages in own]


def _go_text(engine: GoEngine, modelfile: Modelfile) -> Callable[[Sequence[Message]], str]:
    template = modelfile.template
    if template is None:
        template = "{{ .Prompt }}{{ .Response }}"  # what Ollama does without one
    return lambda messages: engine.render(template, messages, modelfile.system or "")


def _letter_faults(modelfile: Modelfile, form: PromptFormat) -> Iterator[str]:
    """Without Go: whether TEMPLATE and SYSTEM are what `export` writes."""
    for name, there, wanted in (
        ("TEMPLATE", modelfile.template or "", form.template),
        ("SYSTEM", modelfile.system or "", form.default_system),
    ):
        if there != wanted:
            yield f"{name}: {_difference(there, wanted)}"


def _faults(
    conversation: Rendered,
    source: Checkpoint,
    llama: LlamaCpp,
    renderings: Sequence[_Rendering],
) -> Iterator[str]:
    messages = conversation.messages
    wanted = source.prompt_format.text(messages, for_answer=True)
    for rendering in renderings:
        try:
            there = rendering.text(messages)
        except LlmkitError as error:
            yield f"{rendering.name}, {conversation.kind}: {error}"
            continue
        if there != wanted:
            yield f"{rendering.name}, {conversation.kind}: {_difference(there, wanted)}"
    fault = id_fault(messages, source, llama, wanted)
    if fault is not None:
        yield f"llama.cpp, {conversation.kind}: {fault}"


def id_fault(
    messages: Sequence[Message], source: Checkpoint, llama: LlamaCpp, text: str
) -> str | None:
    """Where llama.cpp's ids of a prompt's text differ from training's; None if they are equal.

    Messages that contain the text of a special token are not compared: Ollama turns it into the
    token, training keeps it as text, and no template can tell the two apart.
    """
    form = source.prompt_format
    if any(token in message.content for token in form.stops for message in messages):
        return None
    ids = encode_prompt(messages, form, source.tokenizer)
    found = llama.tokenize(text, parse_special=True)
    if found == ids:
        return None
    at = _first_difference(found, ids)
    there, wanted = found[at : at + 4], ids[at : at + 4]
    return f"ids differ from training at id {at}: {there} instead of {wanted}"


def _difference(there: str, wanted: str) -> str:
    """The first character that differs, and the text around it in both."""
    at = _first_difference(there, wanted)
    start = max(0, at - _SHOWN // 2)
    shown = (repr(text[start : at + _SHOWN]) for text in (there, wanted))
    return "differs from training at character {}: {} instead of {}".format(at, *shown)


def _first_difference(there: Sequence[object], wanted: Sequence[object]) -> int:
    pairs = enumerate(zip(there, wanted, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(there), len(wanted)))
