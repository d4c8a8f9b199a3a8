"""Generating several texts at once, each as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.cache import KVCache
from llmkit.errors import ConfigError
from llmkit.generation import Characters, before_stop
from llmkit.sampling import Sampling

TEXTS_AT_ONCE = 16


class BatchReader(Protocol):
    """A model that reads several texts at once, wherever it runs."""

    @property
    def context_length(self) -> int: ...  # noqa: D102

    def fitting(self, lengths: Sequence[int]) -> int:
        """How many of the next texts it reads at once if they grow to these lengths; 1 or more."""
        ...

    def start(self, prompts: Sequence[Sequence[int]], n_new: int) -> Tensor:
        """Forget everything and read a prompt in each row, with room for `n_new` more tokens.

        Logits (B, V) of the tokens behind them.
        """
        ...

    def read(self, rows: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Forget all rows but these, and read one more token in each.

        Logits (B, V) of the tokens behind them.
        """
        ...


@dataclass
class ModelBatch:
    """A model in PyTorch (a BatchReader). Prompts are padded at their start."""

    model: LanguageModel
    _cache: KVCache = field(default_factory=lambda: KVCache(0))
    _n_rows: int = 0

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.model.config.context_length

    def fitting(self, lengths: Sequence[int]) -> int:  # noqa: D102
        return min(len(lengths), TEXTS_AT_ONCE)

    def start(self, prompts: Sequence[Sequence[int]], n_new: int) -> Tensor:  # noqa: D102
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        rows = [[0] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)]
        on_device = torch.tensor(padding, device=self.model.device)
        self._cache = KVCache(longest + n_new, on_device if any(padding) else None)
        self._n_rows = len(rows)
        return self._logits(rows)

    def read(self, rows: Sequence[int], ids: Sequence[int]) -> Tensor:  # noqa: D102
        if len(rows) < self._n_rows:
            self._cache.keep(rows)
            self._n_rows = len(rows)
        return self._logits([[token_id] for token_id in ids])

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        tokens = torch.tensor(rows, device=self.model.device)  # (B, T)
        return self.model.logits(self.model.hidden_states(tokens, self._cache)[:, -1]).cpu()


def generate_batch(
    reader: BatchReader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    is_end: Callable[[int], bool],
    *,
    is_done: Callable[[list[int]], bool] = lambda ids: False,
    done: Callable[[int], None] = lambda n_prompts: None,
) -> list[list[int]]:
    """The ids after each prompt until one that ends the text: what each prompt alone would give.

    Prompts of similar length go through the model together. `is_done` ends an answer by the ids so
    far; `done` hears how many answers are finished. Raises ConfigError for a context that slides.
    """
    if sampling.context_shift:
        raise ConfigError("context_shift needs one prompt at a time")
    limits = [sampling.limit(len(prompt), reader.context_length) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    while order:
        n = reader.fitting([len(prompts[number]) + limits[number] for number in order])
        group, order = order[:n], order[n:]
        open_rows, generators = group, {number: sampling.generator() for number in group}
        logits = reader.start(
            [prompts[number] for number in group], max(limits[number] for number in group)
        )
        while open_rows:
            kept, chosen = [], []
            for row, number in enumerate(open_rows):
                past = [*prompts[number], *answers[number]]
                token_id = sampling.distribution(logits[row], past).draw(generators[number])
                if is_end(token_id):
                    continue
                answers[number].append(token_id)
                if len(answers[number]) < limits[number] and not is_done(answers[number]):
                    kept.append(row)
                    chosen.append(token_id)
            open_rows = [open_rows[row] for row in kept]
            if open_rows:
                logits = reader.read(kept, chosen)
        done(len(prompts) - len(order))
    return answers


def batch_texts(
    reader: BatchReader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    is_end: Callable[[int], bool],
    decode: Callable[[int], bytes],
) -> list[str]:
    """The text after each prompt, until a token that ends it, or a stop string."""

    def text(ids: Sequence[int]) -> str:
        characters = Characters()
        return "".join(characters.add(decode(token_id)) for token_id in ids)

    def has_stopped(ids: Sequence[int]) -> bool:
        return bool(sampling.stop) and any(stop in text(ids) for stop in sampling.stop)

    found = generate_batch(reader, prompts, sampling, is_end, is_done=has_stopped)
    pieces = (before_stop([(0, text(ids))], sampling.stop) for ids in found)
    return ["".join(part for _, part in each) for each in pieces]
