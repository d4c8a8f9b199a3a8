"""Talking to a checkpoint in PyTorch or to a GGUF file in llama.cpp, the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch

from llmkit.console import say
from llmkit.device import choose_device
from llmkit.errors import QuantizationError
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import is_gguf, load_folder, read_gguf, refuse_faulty_weights
from llmkit.export.llamacpp.checkpoint_runner import CheckpointRunner
from llmkit.export.llamacpp.devices import Backend, uses_gpu
from llmkit.export.llamacpp.gguf_runner import GGUFRunner
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.files import StrPath
from llmkit.generation import Candidate, GeneratedToken, SampledToken
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import Sampling


class Runner(Protocol):
    """A model that answers, in the prompt format that it was trained with."""

    @property
    def context_length(self) -> int:
        """How many tokens the model sees."""
        ...

    @property
    def continues(self) -> bool:
        """Whether it goes on from a text, as a base model does, instead of answering it."""
        ...

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the answer to the last message begins."""
        ...

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[SampledToken]:
        """Yield the tokens that follow."""
        ...

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
        """The text that follows each prompt, several at once: what each alone would give.

        Raises ConfigError for a context that slides.
        """
        ...

    @property
    def is_classifier(self) -> bool:
        """Whether the answer is a label."""
        ...

    @property
    def label_ids(self) -> dict[str, int]:
        """A classifier's labels, and the ids of the tokens that they are."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for a special one."""
        ...

    def begun(self, ids: list[int]) -> list[int]:
        """Ids with the token before them that the model expects; one token where there are none."""
        ...

    def branches(
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """For each branch after `prefix` the logits (len(branch), V) that foretell its tokens.

        What `prefix` shares with that of the last call is not computed again.
        """
        ...


@contextmanager
def open_runner(model: StrPath, backend: Backend = "cpu", *, branches: int = 1) -> Iterator[Runner]:
    """A checkpoint folder or a GGUF file, ready to answer. Raises LlmkitError.

    `backend`: where llama.cpp runs a GGUF file. With `branches` it computes exactly, and up to so
    many at once.
    """
    model = Path(model)
    if is_gguf(model):
        file = read_gguf(model)  # llama.cpp does not say what to do with a damaged file
        adapter_of(file)
        with LlamaCpp(model, exact=branches > 1, gpu=uses_gpu(backend), branches=branches) as llama:
            with suppress(QuantizationError):  # another program's file, of a type that is unknown
                refuse_faulty_weights(file)
            yield GGUFRunner(llama)
    else:
        checkpoint = load_folder(model)
        yield CheckpointRunner(checkpoint, checkpoint.load_model(choose_device()))


def answer_text(runner: Runner, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """Yield the text that follows, piece by piece. Says what a context that slides has dropped."""
    for token in runner.tokens(prompt, sampling):
        if token.dropped is not None:
            first, last = token.dropped.start + 1, token.dropped.stop
            say(
                f"the context of {runner.context_length} tokens is full: dropped tokens {first} to "
                f"{last}, kept the first {first - 1} and the newest"
            )
        if token.text:
            yield token.text


def generate(
    model: StrPath, prompt: str, sampling: Sampling | None = None, *, backend: Backend = "cpu"
) -> Iterator[str]:
    """Yield what a model says to `prompt`, piece by piece; a base model goes on from it.

    `model`: a checkpoint folder or a GGUF file. The same sampler with the same seed works on
    both. `backend`: where llama.cpp runs a file, "cpu", "gpu" or "auto", which is a GPU if there is
    one. Raises LlmkitError: a file that cannot be read, a prompt that fills the context.
    """
    with open_runner(model, backend) as runner:
        ids = runner.prompt([Message("user", prompt)])
        yield from answer_text(runner, ids, sampling or Sampling())


def stream_tokens(
    model: StrPath, prompt: str, sampling: Sampling | None = None, *, backend: Backend = "cpu"
) -> Iterator[GeneratedToken]:
    """Yield the tokens of what `generate` yields, with their probabilities and candidates."""
    with open_runner(Path(model), backend) as runner:
        ids = runner.prompt([Message("user", prompt)])
        for token in runner.tokens(ids, sampling or Sampling()):
            yield token.described(runner.token_bytes)


def generate_texts(
    model: StrPath,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    backend: Backend = "cpu",
) -> list[str]:
    """What `generate` says to each prompt. A checkpoint computes several at once."""
    with open_runner(Path(model), backend) as runner:
        ids = [runner.prompt([Message("user", prompt)]) for prompt in prompts]
        sampling = sampling or Sampling()
        if sampling.context_shift:
            return ["".join(answer_text(runner, prompt, sampling)) for prompt in ids]
        return runner.answers(ids, sampling)


def token_text(runner: Runner, token_id: int) -> str:
    """The text of a token; U+FFFD for bytes that are only part of a character."""
    return runner.token_bytes(token_id).decode(errors="replace")


def candidate(runner: Runner, token_id: int, probability: float) -> Candidate:
    """A token as a model without sampling settings finds it."""
    return Candidate(token_id, token_text(runner, token_id), probability, probability)


def windows(runner: Runner, ids: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """A text in parts that fit the context, each with what the model reads before it.

    That is the last token of the part before, or the start of a document.
    """
    start = 0
    while start < len(ids):
        prefix = runner.begun(list(ids[max(0, start - 1) : start]))
        window = list(ids[start : start + runner.context_length - len(prefix) + 1])
        yield prefix, window
        start += len(window)
