"""A generation with the probabilities behind each token, and where another model differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmkit.errors import ConfigError
from llmkit.export.llamacpp.runners import Runner
from llmkit.generation import TOP_CANDIDATES, Candidate
from llmkit.sampling import Sampling


@dataclass(frozen=True)
class TracedToken:
    """A token of a generation, its probability by the model alone, and the most probable ones.

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
    """Yield the tokens that follow `prompt`. Unlike GeneratedToken they do not keep all logits."""
    for token in runner.tokens(prompt, sampling):
        yield TracedToken(token.id, token.text, token.probability, tuple(token.candidates))


def differences(
    tokens: Sequence[TracedToken], prompt: Sequence[int], original: Runner
) -> list[Difference | None]:
    """For each token whether the original model would have preferred another one there.

    The original reads the same prompt and the same tokens (teacher forcing), and the most probable
    tokens are compared. Raises ConfigError where the two have different vocabularies.
    """
    if not tokens:
        return []
    for token in tokens[:TOP_CANDIDATES]:
        text = _text(original, token.greedy.id)
        if text != token.greedy.token:
            raise ConfigError("the models have different vocabularies")
    ids = [token.id for token in tokens]
    (logits,) = original.branches(prompt, [ids])  # (n, V)
    best = logits.double().softmax(-1).max(-1)
    found: list[Difference | None] = []
    for token, place, probability in zip(
        tokens, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        same = place == token.greedy.id
        other = Candidate(place, _text(original, place), probability, sampled=0)
        found.append(None if same else Difference(other, token.greedy))
    return found


def _text(runner: Runner, token_id: int) -> str:
    return runner.token_bytes(token_id).decode(errors="replace")
