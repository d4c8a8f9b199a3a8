"""Whether every rendering of the prompt format gives the model what it was trained on.

Four programs write a prompt: training, the GGUF's Jinja template, the Modelfile's TEMPLATE, and
llama.cpp, which makes tokens of the text. TEMPLATE is run by Go's own engine where a Go compiler
is there; without one it has to be, to the letter, what the format's own rendering is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from llmkit.checkpoint import Checkpoint
from llmkit.errors import LlmkitError
from llmkit.export.chat_template import ChatTemplate
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.export.parity.check import Check, counted
from llmkit.export.parity.subject import Subject
from llmkit.finetuning.examples import encode_prompt
from llmkit.finetuning.held_out import held_out_questions
from llmkit.modelfiles.go_engine import GoEngine, any_go_engine
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.prompt_format import COMPLETION, Message, PromptFormat

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
class Conversation:
    """Messages that end with a question, and what kind of conversation it is."""

    kind: str
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class _Rendering:
    """One of the programs: prompt text and, where it has its own, token ids."""

    name: str
    text: Callable[[Sequence[Message]], str]


def prompt_check(subject: Subject, llama: LlamaCpp, modelfile: Modelfile | None) -> Check:
    """Compare all renderings on conversations of every kind. Value: prompts that differ."""
    source = subject.checkpoint
    form = source.prompt_format
    found = conversations(source)
    with any_go_engine() if modelfile else nullcontext() as engine:
        faults, renderings = [], []
        if llama.chat_template is None:
            faults.append("the GGUF has no tokenizer.chat_template: programs take one of their own")
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
        names.append("TEMPLATE (compared as text: there is no Go compiler that works)")
    fine = f"{len(found)} conversations are the same in {', '.join(names)}"
    more = f"; {len(faults) - 1} more differ" if len(faults) > 1 else ""
    return counted("prompt", len(faults), fine, "".join(faults[:1]) + more)


def conversations(source: Checkpoint) -> list[Conversation]:
    """Single turns, system text, several turns, hostile content and the user's own questions."""
    form = source.prompt_format
    question, answer = Message("user", "Who is it?"), Message("assistant", "It is Ida.")
    system = Message("system", "Answer in one sentence.")
    found = [
        Conversation("one question", (question,)),
        Conversation("a system text", (system, question)),
        Conversation("an empty system text", (Message("system", ""), question)),
        *(Conversation("hostile content", (system, Message("user", text))) for text in HOSTILE),
        Conversation("the text of special tokens", (Message("user", "".join(form.stops)),)),
    ]
    if form != COMPLETION:  # where a prompt runs straight into the answer there are no turns
        turns = (question, answer, Message("user", "And then?"))
        found += [
            Conversation("two turns", turns),
            Conversation("a system text and two turns", (system, *turns)),
            *(
                Conversation(
                    "hostile turns", (Message("user", text), answer, Message("user", text))
                )
                for text in HOSTILE
            ),
        ]
    own = held_out_questions(source)[:N_OWN]
    return found + [Conversation("a held-out question", messages) for messages in own]


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
    conversation: Conversation,
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
    """Where the ids that llama.cpp makes of a prompt's text are not those of training.

    Ollama makes special tokens of their text wherever it stands, in a message too (trap 6 of its
    facts); training kept it text, and no prompt can say which is meant: such messages pass.
    """
    form = source.prompt_format
    if any(token in message.content for token in form.stops for message in messages):
        return None
    ids = encode_prompt(messages, form, source.tokenizer)
    found = llama.tokenize(text, parse_special=True)
    if found == ids:
        return None
    at = next((i for i, (a, b) in enumerate(zip(found, ids, strict=False)) if a != b), -1)
    return (
        f"other ids than in training, from id {at} on: "
        f"{found[at : at + 4]} instead of {ids[at : at + 4]}"
    )


def _difference(there: str, wanted: str) -> str:
    """Where two texts part, and what stands there in each."""
    pairs = enumerate(zip(there, wanted, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(there), len(wanted)))
    start = max(0, at - _SHOWN // 2)
    shown = (repr(text[start : at + _SHOWN]) for text in (there, wanted))
    return "differs from training from character {} on: {} instead of {}".format(at, *shown)
