"""A generation with the probabilities behind each token, from any runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmkit.errors import ConfigError
from llmkit.export.llamacpp.runners import Runner
from llmkit.generation import Sampling

N_CANDIDATES = 10


@dataclass(frozen=True)
class Candidate:
    """A token that could have come next, and its probability at temperature 1."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TracedToken:
    """A token of a generation, its probability at temperature 1, and the most probable ones.

    `text` is what it adds in whole characters: the last token of a character has all of it.
    """

    id: int
    text: str
    probability: float
    candidates: tuple[Candidate, ...]  # the most probable first

    @property
    def greedy(self) -> Candidate:
        """The most probable token at this place."""
        return self.candidates[0]


@dataclass(frozen=True)
class Difference:
    """Where a model prefers another token than the original model does after the same text."""

    original: Candidate
    own: Candidate


def trace(runner: Runner, prompt: Sequence[int], sampling: Sampling) -> Iterator[TracedToken]:
    """Yield the tokens that follow `prompt`, as `runner.answer` chooses them."""
    watched = _Watched(**vars(sampling))
    n_told = 0
    for text in runner.answer(prompt, watched):
        new = watched.chosen[n_told:]
        n_told += len(new)
        for number, (token_id, probability, top) in enumerate(new, start=1):
            candidates = tuple(candidate(runner, *entry) for entry in top)
            yield TracedToken(token_id, text if number == len(new) else "", probability, candidates)


def differences(
    tokens: Sequence[TracedToken], prompt: Sequence[int], original: Runner
) -> list[Difference | None]:
    """For each token whether the original model would have preferred another one there.

    The original reads the same prompt and the same tokens (teacher forcing), and the most probable
    tokens are compared. Raises ConfigError where the two have different vocabularies.
    """
    if not tokens:
        return []
    for token in tokens[:N_CANDIDATES]:
        text = token_text(original, token.greedy.id)
        if text != token.greedy.text:
            raise different_vocabularies()
    ids = [token.id for token in tokens]
    (logits,) = original.branches(prompt, [ids])  # (n, V)
    best = logits.double().softmax(-1).max(-1)
    found: list[Difference | None] = []
    for token, place, probability in zip(
        tokens, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        same = place == token.greedy.id
        other = candidate(original, place, probability)
        found.append(None if same else Difference(other, token.greedy))
    return found


def different_vocabularies() -> ConfigError:
    """The error for models whose predictions cannot be compared."""
    return ConfigError("the models have different vocabularies; choose files of one model")


@dataclass(frozen=True)
class _Watched(Sampling):
    """Keeps what each token was chosen from: its id, its probability, the most probable ones."""

    chosen: list[tuple[int, float, list[tuple[int, float]]]] = field(default_factory=list)

    def choose(self, logits: Tensor, *rest: Any, **options: Any) -> int:
        token_id = super().choose(logits, *rest, **options)
        probabilities = logits.detach().cpu().double().softmax(-1)
        top = torch.topk(probabilities, min(N_CANDIDATES, len(probabilities)))
        pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        self.chosen.append((token_id, float(probabilities[token_id]), pairs))
        return token_id


def candidate(runner: Runner, token_id: int, probability: float) -> Candidate:
    """A token of a model's vocabulary with its probability."""
    return Candidate(token_id, token_text(runner, token_id), probability)


def token_text(runner: Runner, token_id: int) -> str:
    """The text of a token; of one that is part of a character, U+FFFD."""
    return runner.token_bytes(token_id).decode(errors="replace")
