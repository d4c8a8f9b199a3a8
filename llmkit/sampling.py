"""How the next token is chosen: llama.cpp's chain of samplers, in its order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.errors import CheckpointError, ConfigError, PromptTooLongError

OLLAMA_CONTEXTS = 10  # with a context that slides, Ollama ends an answer after so many contexts


class Distribution(NamedTuple):
    """What the next token is drawn from: ids (n,), most probable first; float64 (n,)."""

    ids: Tensor
    probabilities: Tensor

    def draw(self, generator: torch.Generator) -> int:
        """A token id, as often as its probability says."""
        return int(self.ids[torch.multinomial(self.probabilities, 1, generator=generator)])


@dataclass(frozen=True)
class Sampling:
    """How a text goes on. Temperature 0 takes the most probable token.

    The chain is llama.cpp's, so Ollama's too: repeat_penalty, top_k, top_p, min_p, temperature.
    Each step sees what the one before left; None or 1 leaves a step out. Raises ConfigError.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # tokens of prompt and answer that are penalized
    seed: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()  # the text ends before these
    context_shift: bool = False  # go on when the context is full, without the oldest tokens
    num_keep: int = 4  # tokens at the start that a shift keeps

    def __post_init__(self) -> None:
        checks = {
            "temperature": (
                0 <= self.temperature < math.inf,
                "must be 0 (greedy) or a positive number",
            ),
            "top_k": (self.top_k is None or self.top_k >= 1, "must be 1 or more"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            "min_p": (self.min_p is None or 0 <= self.min_p <= 1, "must be between 0 and 1"),
            "repeat_penalty": (0 < self.repeat_penalty < math.inf, "must be a positive number"),
            "repeat_last_n": (self.repeat_last_n >= 0, "must be 0 or more"),
            "max_tokens": (self.max_tokens is None or self.max_tokens >= 1, "must be 1 or more"),
            "seed": (0 <= self.seed < 1 << 64, "must be between 0 and 2^64 - 1"),
            "stop": (all(self.stop), "must not be empty"),
            "num_keep": (self.num_keep >= 0, "must be 0 or more"),
        }
        for name, (is_right, rule) in checks.items():
            if not is_right:
                raise ConfigError(f"{name.replace('_', '-')} {rule}, not {getattr(self, name)}")

    def generator(self) -> torch.Generator:
        """A source of random numbers that gives the same ones for the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def distribution(self, logits: Tensor, past: Sequence[int] = ()) -> Distribution:
        """What the chain makes of logits (V,) after the tokens `past`.

        Raises CheckpointError for logits that are NaN.
        """
        refuse_nan(logits)
        logits = self._penalized(logits.cpu(), past)
        if self.temperature == 0:
            return Distribution(logits.argmax()[None], torch.ones(1, dtype=torch.float64))
        n = min(self.top_k or len(logits), len(logits))
        kept, ids = logits.topk(n) if n < len(logits) else logits.sort(descending=True, stable=True)
        # Below the largest one, so that no temperature makes them infinite.
        kept = kept.double() - kept[0]
        if self.top_p is not None:
            # Until their sum reaches top_p: those whose predecessors stay below it.
            probabilities = kept.softmax(0)
            kept = kept[probabilities.cumsum(0) - probabilities < self.top_p]
        if self.min_p:
            kept = kept[kept >= math.log(self.min_p)]
        return Distribution(ids[: len(kept)], (kept / self.temperature).softmax(0))

    def limit(self, n_prompt: int, context_length: int) -> int:
        """How many tokens may follow a prompt. Raises PromptTooLongError where none may."""
        room = context_length - n_prompt
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {n_prompt} tokens, but the model's context length is "
                f"{context_length}; shorten the prompt"
            )
        if self.context_shift:
            return self.max_tokens or OLLAMA_CONTEXTS * context_length
        return min(room, self.max_tokens or room)

    def dropped(self, n_read: int, context_length: int) -> range | None:
        """Which of the tokens read are dropped before the next one: llama-server's context shift.

        Half of those behind the first `num_keep`, when only one more would fit.
        """
        if not self.context_shift or n_read + 1 < context_length:
            return None
        n_keep = max(0, min(context_length - 4, self.num_keep))
        n_left = n_read - n_keep
        n_dropped = min(n_left // 2, n_left - 1)
        return range(n_keep, n_keep + n_dropped) if n_dropped > 0 else None

    def _penalized(self, logits: Tensor, past: Sequence[int]) -> Tensor:
        if self.repeat_penalty == 1 or not self.repeat_last_n or not past:
            return logits
        ids = torch.tensor(sorted(set(past[-self.repeat_last_n :])))
        found = logits[ids]
        logits = logits.clone()
        logits[ids] = torch.where(
            found > 0, found / self.repeat_penalty, found * self.repeat_penalty
        )
        return logits


# What a classifier is asked with: its one token, the most probable. All tokens that are no labels
# are as probable as each other; drawn from, they drown the labels.
FOR_LABEL = Sampling(temperature=0, max_tokens=1)


def refuse_nan(logits: Tensor) -> None:
    """Raise CheckpointError where the model computes no numbers."""
    if logits.isnan().any():
        raise CheckpointError("the model computes NaN: its weights are too large or damaged")
