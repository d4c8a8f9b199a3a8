"""Sampling text from a GPT, token by token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

import torch
from torch import Tensor

from llmkit.architectures.base import KVCache, LanguageModel
from llmkit.errors import CheckpointError, ConfigError, PromptTooLongError

PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most probable one."""

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"temperature must be 0 (greedy) or a positive number, not {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top-k must be 1 or more, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max-tokens must be 1 or more, not {self.max_tokens}")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed must be between 0 and 2^64 - 1, not {self.seed}")

    def for_label(self) -> Sampling:
        """What a classifier is asked with: its one token, the most probable.

        All tokens that are no labels are as probable as each other; drawn from, they drown the
        labels.
        """
        return replace(self, temperature=0, max_tokens=1)

    def generator(self) -> torch.Generator:
        """A source of random numbers that gives the same ones for the same seed."""
        return torch.Generator().manual_seed(self.seed)

    def choose(self, logits: Tensor, generator: torch.Generator) -> int:
        """Choose a token id by its logits (V,)."""
        refuse_nan(logits)
        if self.temperature == 0:
            return int(logits.argmax())
        ordered, ids = logits.cpu().double().sort(descending=True, stable=True)
        # Below the largest one, so that no temperature makes them infinite.
        ordered = (ordered - ordered[0]) / self.temperature
        probabilities = ordered[: self.top_k].softmax(dim=0)
        if self.top_p is not None:
            # Keep tokens until their sum reaches top_p: those whose predecessors stay below it.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities * (before < self.top_p)
        return int(ids[torch.multinomial(probabilities, 1, generator=generator)])

    def limit(self, n_prompt: int, context_length: int) -> int:
        """How many tokens may follow a prompt. Raises PromptTooLongError where none may."""
        room = context_length - n_prompt
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {n_prompt} tokens, but the model's context length is "
                f"{context_length}; shorten the prompt"
            )
        return min(room, self.max_tokens or room)


@torch.inference_mode()
def generate_ids(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling, stops: Container[int]
) -> Iterator[int]:
    """Yield the ids that follow `prompt` until one of `stops` or the end of the context."""
    generator = sampling.generator()
    cache = KVCache()
    new = list(prompt)
    for _ in range(sampling.limit(len(prompt), model.config.context_length)):
        logits = model(torch.tensor([new], device=model.device), cache)[0, -1]
        new = [sampling.choose(logits, generator)]
        if new[0] in stops:
            return
        yield new[0]


@torch.inference_mode()
def greedy_ids(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stops: Collection[int],
    done: Callable[[int], None] = lambda n_prompts: None,
    is_complete: Callable[[Sequence[int]], bool] = lambda ids: False,
) -> list[list[int]]:
    """The most probable ids after each prompt until one of `stops`, at most `max_tokens`.

    Prompts of the same length go through the model together. `done` hears how many are finished.
    `is_complete`: whether an answer may end behind its last token.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    numbers = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    n_done = 0
    for group in _of_one_length(numbers, prompts):
        length, cache, open_ones = len(prompts[group[0]]), KVCache(), set(group)
        new = torch.tensor([prompts[number] for number in group], device=model.device)  # (B, T)
        for _ in range(Sampling(max_tokens=max_tokens).limit(length, model.config.context_length)):
            logits = model.logits(model.hidden_states(new, cache)[:, -1])  # (B, V)
            refuse_nan(logits)
            new = logits.argmax(-1, keepdim=True)  # (B, 1)
            for number, chosen in zip(group, new[:, 0].tolist(), strict=True):
                if number in open_ones and chosen in stops:
                    open_ones.remove(number)
                elif number in open_ones:
                    answers[number].append(chosen)
                    if is_complete(answers[number]):
                        open_ones.remove(number)
            if not open_ones:
                break
        n_done += len(group)
        done(n_done)
    return answers


def _of_one_length(
    numbers: Iterable[int], prompts: Sequence[Sequence[int]]
) -> Iterator[tuple[int, ...]]:
    """Prompts of one length, no more than fit the memory with their keys and values."""
    for _, group in groupby(numbers, key=lambda number: len(prompts[number])):
        while some := tuple(islice(group, PROMPTS_AT_ONCE)):
            yield some


def refuse_nan(logits: Tensor) -> None:
    """Raise CheckpointError where the model computes no numbers."""
    if logits.isnan().any():
        raise CheckpointError("the model computes NaN: its weights are too large or damaged")


def prompt_ids(ids: list[int], start_of_document: int) -> list[int]:
    """What to begin with: the prompt, or the start of a document where the prompt is empty."""
    return ids or [start_of_document]


def stream_text(pieces: Iterable[bytes]) -> Iterator[str]:
    """The text of a stream of tokens' bytes, in whole characters, as llama.cpp's server streams it.

    A character that is cut off by the end is left out; other bytes that are not UTF-8 become
    U+FFFD.
    """
    held = b""
    for piece in pieces:
        held += piece
        if held and not ends_inside_character(held):
            yield held.decode("utf-8", errors="replace")
            held = b""


def ends_inside_character(text: bytes) -> bool:
    """`validate_utf8` of llama.cpp's server: whether one of the last bytes begins a longer one."""
    for n_there, byte in enumerate(reversed(text[-4:]), start=1):
        length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if 0xC0 <= byte < 0xF8 and n_there < length:
            return True
    return False
