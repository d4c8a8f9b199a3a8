"""The `generation` check: greedy continuations, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llmkit.console import progress
from llmkit.export.check import Outcome
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.reference import Reference

NEW_TOKENS = 12


@dataclass(frozen=True)
class Step:
    """A token on which the programs differ, and the gap between both in PyTorch."""

    prompt: int
    position: int
    chosen: int
    wanted: int
    gap: float  # of logits


@torch.inference_mode()
def generation_check(
    llama: LlamaCpp,
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    noise: float,
    n_new: int = NEW_TOKENS,
) -> Outcome:
    """Whether PyTorch, on llama.cpp's path, would have chosen each of its tokens.

    A gap of at most twice the noise is a near-tie: each of two logits may move by the noise.
    Value: tokens that are neither equal nor near-ties.
    """
    n_tokens = 0
    near_ties: list[Step] = []
    real: list[Step] = []
    continuations: list[list[int]] = []
    with progress("generate", len(prompts), "prompts") as bar:
        for number, prompt in enumerate(prompts, start=1):
            continuations.append(greedy_ids(llama, prompt, n_new))
            n_tokens += len(continuations[-1])
            bar.update(number)
    for step in _other_choices(reference, prompts, continuations):
        (near_ties if step.gap <= 2 * noise else real).append(step)
    detail = (
        f"{len(prompts)} prompts: {n_tokens - len(near_ties) - len(real):,} of {n_tokens:,} tokens "
        f"equal, {len(near_ties)} near-ties (logit gap up to {2 * noise:.1e})"
    )
    if real:
        worst = max(real, key=lambda step: step.gap)
        detail += (
            f"; {len(real)} tokens differ, most at prompt {worst.prompt}, token {worst.position}: "
            f"llama.cpp chose {worst.chosen}, PyTorch {worst.wanted}, logit gap {worst.gap:.3g}"
        )
    return Outcome(not real, detail, value=len(real))


def _other_choices(
    reference: Reference, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> Iterator[Step]:
    """Steps at which PyTorch would have chosen another token after the same ones."""
    pairs = zip(prompts, continuations, strict=True)
    paths = [(number, *pair) for number, pair in enumerate(pairs) if pair[1]]
    if not paths:
        return
    texts = [torch.tensor([*prompt, *chosen[:-1]]) for _, prompt, chosen in paths]
    all_logits = reference.last_logits(texts, [len(chosen) for _, _, chosen in paths])
    for (number, _, chosen), logits in zip(paths, all_logits, strict=True):  # (n, V)
        for position, (token_id, row) in enumerate(zip(chosen, logits, strict=True)):
            if not row[token_id] >= row.max():  # of NaN neither is true
                gap = float(row.max() - row[token_id])
                yield Step(number, position, token_id, int(row.argmax()), gap)


def greedy_ids(llama: LlamaCpp, prompt: Sequence[int], n_new: int) -> list[int]:
    """llama.cpp's continuation up to an end of generation, which is its last token then."""
    llama.reset()
    n_new = min(n_new, llama.n_ctx - len(prompt))
    ids: list[int] = []
    new = list(prompt)
    while len(ids) < n_new:
        new = [int(llama.evaluate(new, all_positions=False)[0].argmax())]
        ids += new
        if llama.is_end_of_generation(new[0]):
            break
    return ids
