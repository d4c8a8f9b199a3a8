"""Ollama's log-probabilities against PyTorch's, by the arithmetic that explains them best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

import gguf
import torch
from torch import Tensor

from llmkit.export.ollama.server import OllamaServer
from llmkit.export.verify.arithmetic import CPU, GPU, Arithmetic, Type
from llmkit.export.verify.ollama_answers import (
    Answers,
    Heard,
    Logits,
    Vocabulary,
    as_ollama_reads,
    hear,
)
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget

N_PROMPTS = 10
# Ollama keeps keys and values as f16 and sums attention in f16; the reference with f16 keys and
# values differs from itself by what one of these roundings does (docs/parity.md).
MULTIPLE = 4.0


@dataclass
class Compared:
    """Log-probabilities of Ollama against the expected ones."""

    faults: list[str] = field(default_factory=list)
    n_prompts: int = 0
    n: int = 0
    largest: float = 0.0
    noise: float = 0.0
    arithmetic: Arithmetic = CPU  # with the type of keys and values, of PyTorch's
    place: str = "unknown"  # where the server runs the model

    @property
    def explanation(self) -> str:
        """Where the model runs, and which arithmetic explains its numbers."""
        return f"on {self.place}, as with {self.arithmetic.name}"

    @property
    def limit(self) -> float:
        """How far apart they may be."""
        return MULTIPLE * self.noise


@torch.inference_mode()
def compared_logprobs(
    server: OllamaServer, name: str, target: VerifyTarget, prompts: Sequence[Sequence[int]]
) -> Compared:
    """Greedy tokens and their log-probabilities, as far as Ollama tells them.

    PyTorch computes them with each arithmetic that the server's device may have, each type of keys
    and values, and on the CPU with and without flash attention; the nearest counts.
    """
    source = target.checkpoint
    read = [as_ollama_reads(prompt, source.tokenizer) for prompt in prompts[:N_PROMPTS]]
    exact = Reference(target, torch.float64)
    n_ctx = source.config.context_length
    answers = hear(server, name, read, source.tokenizer, n_ctx, exact)
    share = server.gpu_share(name) if answers.heard else None
    width = source.config.n_embd // source.config.n_head
    candidates = [
        served
        for arithmetic in (CPU, *(GPU if share is None or share > 0 else ()))
        for served in arithmetic.served()
        if not width % gguf.GGML_QUANT_SIZES[served.kv][0]
    ]
    logprobs = _computed_once(target, answers.heard)
    found = [_compared_as(one, answers, logprobs) for one in candidates]
    nearest = min(found, key=lambda one: (bool(one.faults), one.largest / (one.limit or 1)))
    nearest.place = _place(share)
    return _judged(nearest, answers)


@torch.inference_mode()
def compare_logprobs(
    server: OllamaServer,
    name: str,
    prompts: Iterable[tuple[str, list[int]]],
    tokenizer: Vocabulary,
    n_ctx: int,
    *,
    exact: Logits,
    rounded: Logits,
) -> Compared:
    """The same for prompts as text and as token ids, against any program.

    The limit follows from how far `rounded`, with keys and values as f16, is from `exact`.
    """
    compared = Compared()
    answers = hear(server, name, prompts, tokenizer, n_ctx, exact)
    for one in answers.heard:
        wanted, other = (one.logprobs(program.logits(one.ids)) for program in (exact, rounded))
        _compare_tokens(one, answers.ids_of, wanted, (other - wanted).abs(), compared)
    return _judged(compared, answers)


def _judged(compared: Compared, answers: Answers) -> Compared:
    """With a fault where nothing was compared, or the largest difference is beyond the limit."""
    compared.n_prompts, compared.faults = answers.n_prompts, answers.faults + compared.faults
    if not compared.n and not compared.faults:
        why = f"Ollama returned no usable token for {compared.n_prompts} prompts"
        if not compared.n_prompts:
            why = "no prompt fits the context"
        compared.faults.append(f"no log-probability was compared: {why}")
    if not compared.largest <= compared.limit:
        compared.faults.append(
            f"log-probabilities differ by {compared.largest:.1e}, the limit is {compared.limit:.1e}"
        )
    return compared


def _place(share: float | None) -> str:
    if share is None:
        return "an unknown device"
    if share >= 1:
        return "the GPU"
    return f"the GPU to {100 * share:.0f} %" if share else "the CPU"


def _computed_once(target: VerifyTarget, heard: Sequence[Heard]) -> LogProbs:
    """PyTorch's log-probabilities of each thing heard, (entries, V)."""

    @cache
    def logprobs(arithmetic: Arithmetic, dtype: torch.dtype) -> list[Tensor]:
        reference = Reference(target, dtype, arithmetic=arithmetic)
        texts, lengths = [one.ids for one in heard], [len(one.path) for one in heard]
        found = reference.last_logits(texts, lengths)
        return [one.logprobs(logits) for one, logits in zip(heard, found, strict=True)]

    return logprobs


LogProbs = Callable[[Arithmetic, torch.dtype], list[Tensor]]


def _compared_as(arithmetic: Arithmetic, answers: Answers, logprobs: LogProbs) -> Compared:
    """Compare all that Ollama said with one arithmetic.

    The noise is what keys and values in f16 change, or sums where they are in f16.
    """
    pairs = [((CPU, torch.float64), (CPU.with_cache(Type.F16), torch.float64))]
    if arithmetic.sums == Type.F16:
        pairs.append(((arithmetic, torch.float64), (arithmetic, torch.float32)))
    compared = Compared(arithmetic=arithmetic)
    for number, one in enumerate(answers.heard):
        differences = [logprobs(*a)[number] - logprobs(*b)[number] for a, b in pairs]
        noise = torch.stack(differences).abs().amax(0)
        wanted = logprobs(arithmetic, torch.float64)[number]
        _compare_tokens(one, answers.ids_of, wanted, noise, compared)
    return compared


def _compare_tokens(
    heard: Heard, ids_of: dict[bytes, int], wanted: Tensor, noise: Tensor, compared: Compared
) -> None:
    """Compare each entry's log-probabilities with PyTorch's at its place, (entries, V)."""
    chosen = [heard.path[place] for place in heard.places]
    tokens = heard.said.tokens
    for row, noise_row, token, token_id in zip(wanted, noise, tokens, chosen, strict=False):
        for content, logprob in token.logprobs.items():
            if content in ids_of:
                difference = abs(float(row[ids_of[content]]) - logprob)
                compared.n += 1
                compared.largest = max(compared.largest, difference)
                compared.noise = max(compared.noise, float(noise_row[ids_of[content]]))
        gap = float(row.max() - row[token_id])
        if gap > 2 * MULTIPLE * max(compared.noise, compared.largest):
            compared.faults.append(
                f"Ollama chose token {token_id} instead of {int(row.argmax())}, whose "
                f"log-probability is {gap:.1e} higher"
            )
