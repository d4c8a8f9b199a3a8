"""Models that are evaluated: checkpoints, GGUF files, and models of a running Ollama."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, compress
from pathlib import Path

import torch

from llmkit.errors import ConfigError, PromptTooLongError
from llmkit.export.evaluation.divergence import ROWS_AT_ONCE
from llmkit.export.llamacpp.devices import Backend
from llmkit.export.llamacpp.runners import Runner, open_runner, windows
from llmkit.export.ollama.server import OllamaServer
from llmkit.modelfiles.prompt_format import Message
from llmkit.sampling import Sampling

OLLAMA = "ollama:"
BRANCHES = 32  # options or answers that llama.cpp computes at once
MAX_ANSWER = 256  # tokens


@dataclass(frozen=True)
class Continuation:
    """How probable a text is after another; in nats."""

    log_probability: float
    is_greedy: bool  # whether each of its tokens is the most probable one


@dataclass(frozen=True)
class Model:
    """One that gives log-probabilities."""

    name: str
    runner: Runner

    @property
    def is_classifier(self) -> bool:
        """Whether it answers with one of its own labels."""
        return self.runner.is_classifier

    def continuations(
        self, context: str, options: Sequence[str], *, is_question: bool = False
    ) -> list[Continuation] | None:
        """How probable each option is after the context; None where they do not fit the model.

        With `is_question` the context is a user's message in the model's own prompt format, and the
        options are answers. A base model reads them as text like any other.
        """
        if is_question and not self.runner.continues:
            prefix = self.runner.prompt([Message("user", context)])
            branches = [self.runner.encode(option) for option in options]
        else:
            # Tokenized together and divided behind the context, as lm-evaluation-harness does.
            ids = self.runner.encode(context)
            prefix = self.runner.begun(ids)
            texts = [f"{context} {option}" if context else option for option in options]
            branches = [self.runner.encode(text)[len(ids) :] for text in texts]
        if len(prefix) + max(map(len, branches)) - 1 > self.runner.context_length:
            return None
        return self.scored(prefix, branches)

    def scored(
        self, prefix: Sequence[int], branches: Sequence[Sequence[int]]
    ) -> list[Continuation]:
        """How probable each of some ids is after others, which must fit the context."""
        logits = self.runner.branches(prefix, branches)
        return [_continuation(rows, ids) for rows, ids in zip(logits, branches, strict=True)]

    def bits(self, text: str) -> list[tuple[int, float]]:
        """For each token of a text the byte that it begins at, and its bits.

        A long text is read in windows; see `windows`.
        """
        ids = self.runner.encode(text)
        ends = list(accumulate(len(self.runner.token_bytes(token)) for token in ids))
        found: list[float] = []
        for prefix, window in windows(self.runner, ids):
            (logits,) = self.runner.branches(prefix, [window])
            found += (-_log_probabilities(logits, window) / math.log(2)).tolist()
        return list(zip([0, *ends[:-1]], found, strict=True))

    def answers(self, questions: Sequence[str], max_tokens: int = MAX_ANSWER) -> list[str | None]:
        """The greedy answers; None where the question fills the context."""
        prompts = [self.runner.prompt([Message("user", question)]) for question in questions]
        fits = [len(prompt) < self.runner.context_length for prompt in prompts]
        sampling = Sampling(temperature=0, max_tokens=max_tokens)
        found = iter(self.runner.answers(list(compress(prompts, fits)), sampling))
        return [next(found).strip() if fit else None for fit in fits]


@dataclass(frozen=True)
class OllamaModel:
    """A model of a running Ollama, which only answers."""

    name: str
    server: OllamaServer

    def answers(self, questions: Sequence[str], max_tokens: int = MAX_ANSWER) -> list[str | None]:
        """The greedy answers; None where the question fills the context."""
        name, sampling = self.name.removeprefix(OLLAMA), Sampling(0, max_tokens=max_tokens)
        found: list[str | None] = []
        for question in questions:
            try:
                pieces = self.server.chat(name, [Message("user", question)], sampling)
                found.append("".join(pieces).strip())
            except PromptTooLongError:
                found.append(None)
        return found


@contextmanager
def open_model(name: str, backend: Backend = "cpu") -> Iterator[Model | OllamaModel]:
    """A checkpoint folder, a GGUF file or ollama:NAME. Raises LlmkitError."""
    if name.startswith(OLLAMA):
        with OllamaServer() as server:
            server.show(name.removeprefix(OLLAMA))  # refuses a name that it has not
            yield OllamaModel(name, server)
    else:
        with open_runner(Path(name), backend, branches=BRANCHES) as runner:
            yield Model(name, runner)


def with_log_probabilities(model: Model | OllamaModel) -> Model:
    """The model. Raises ConfigError for one of Ollama."""
    if isinstance(model, OllamaModel):
        raise ConfigError(
            f"{model.name}: Ollama gives no log-probabilities of a given text; use the tasks "
            "answers, classify, judge or human, or give the GGUF file itself"
        )
    return model


def _log_probabilities(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Of each token (n,) by the logits (n, V) before it, in nats, in float64."""
    targets = torch.tensor(ids)[:, None]
    slices = [slice(at, at + ROWS_AT_ONCE) for at in range(0, len(ids), ROWS_AT_ONCE)]
    found = [logits[rows].double().log_softmax(-1).gather(1, targets[rows]) for rows in slices]
    return torch.cat(found)[:, 0]


def _continuation(logits: torch.Tensor, ids: Sequence[int]) -> Continuation:
    return Continuation(
        float(_log_probabilities(logits, ids).sum()),
        logits.argmax(-1).tolist() == list(ids),
    )
