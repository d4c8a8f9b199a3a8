"""A conversation with a model, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmkit.errors import ConfigError, PromptTooLongError
from llmkit.export.gguf.keys import LABELS_KEY
from llmkit.export.llamacpp.runners import answer_text, open_runner
from llmkit.export.ollama.server import OllamaServer
from llmkit.faq import Faq
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import FOR_LABEL, Sampling

Reply = Callable[[Sequence[Message]], Iterator[str]]

FORGOTTEN = "the context is full; dropped the oldest question and answer"


@contextmanager
def open_reply(
    model: Path | None, ollama: str | None, host: str | None, sampling: Sampling
) -> Iterator[Reply]:
    """What answers messages: a checkpoint or GGUF file, or a model of a running Ollama.

    It writes the prompt in the format that the model was trained with, and ends an answer where
    training ended it. Raises LlmkitError: both or none given, what cannot be opened.
    """
    if (model is None) == (ollama is None):
        raise ConfigError(
            "give exactly one model: a checkpoint folder, a GGUF file, or --ollama NAME"
        )
    if ollama is not None:
        with OllamaServer(host) as server:
            shown = server.show(ollama)  # a name that is not there is told before any question
            if LABELS_KEY in shown.metadata:
                yield lambda messages: server.chat(ollama, messages[-1:], FOR_LABEL)
            else:
                yield lambda messages: server.chat(ollama, messages, sampling)
    elif model is not None:
        with open_runner(model) as runner:
            yield lambda messages: answer_text(runner, runner.prompt(messages), sampling)


def chat(
    reply: Reply,
    questions: Iterable[str],
    system: str,
    note: Callable[[str], None],
    faq: Faq | None = None,
) -> Iterator[str]:
    """Yield the answers to one question after the other, in pieces, with a line end after each.

    A question of `faq` is answered from there, after a mark with the question that was found.
    The model is given all that was said. What no longer fits its context is forgotten, the oldest
    first, and `note` is told so. Raises PromptTooLongError where a single question does not fit.
    """
    turns: list[Message] = []
    for question in questions:
        turns.append(Message("user", question))
        known = faq.answer(question) if faq else None
        if known:
            yield f"[FAQ: {known.question}] {known.answer}\n"
            turns.append(Message("assistant", known.answer))
            continue
        said = ""
        for piece in answer(reply, turns, system, note):
            said += piece
            yield piece
        yield "\n"
        if said.strip():
            turns.append(Message("assistant", said.strip()))
        else:
            turns.pop()  # an empty answer cannot be part of what follows


def answer(
    reply: Reply, turns: list[Message], system: str, note: Callable[[str], None]
) -> Iterator[str]:
    """Yield the answer to the last of `turns`, a question, in pieces.

    The oldest question and answer are removed from `turns` as long as the prompt does not fit the
    context, and `note` is told. Raises PromptTooLongError where the question alone does not fit.
    """
    first = [Message("system", system)] if system else []
    while True:
        try:
            pieces = reply([*first, *turns])
            piece = next(pieces, "")  # a prompt that does not fit shows here
            break
        except PromptTooLongError:
            if len(turns) == 1:
                raise
            del turns[:2]
            note(FORGOTTEN)
    yield piece
    yield from pieces
