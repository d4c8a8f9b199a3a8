"""Where along a text a model predicts something else than the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmkit.errors import ConfigError
from llmkit.export.evaluation.divergence import divergence
from llmkit.export.llamacpp.runners import Runner, candidate, open_runner, token_text, windows
from llmkit.files import StrPath
from llmkit.generation import Candidate

_DIFFERENT = "the models have different vocabularies; choose files of one model"


@dataclass(frozen=True)
class TokenDivergence:
    """A token of a text, and how far apart two models' predictions of it are."""

    text: str
    kl: float  # KL(original || other) in nats
    original: Candidate  # what the original finds most probable here
    other: Candidate


def divergence_along(
    original: StrPath, others: StrPath | Sequence[StrPath], text: str
) -> list[list[TokenDivergence]]:
    """For each of `others` its KL from `original` at each token of `text`.

    All are checkpoint folders or GGUF files. Raises LlmkitError for different vocabularies.
    """
    paths = [others] if isinstance(others, str | Path) else others
    with open_runner(Path(original)) as runner:
        found = []
        for path in paths:
            with open_runner(Path(path)) as other:
                found.append(along(runner, other, text))
        return found


def along(original: Runner, other: Runner, text: str) -> list[TokenDivergence]:
    """The KL of one model from another at each token of a text; see `divergence_along`."""
    ids = original.encode(text)
    if other.encode(text) != ids:
        raise ConfigError(_DIFFERENT)
    found = []
    for prefix, window in windows(original, ids):
        (wanted,), (logits,) = (
            runner.branches(prefix, [window]) for runner in (original, other)
        )  # (n, V)
        if wanted.shape != logits.shape:
            raise ConfigError(_DIFFERENT)
        kl = divergence(wanted, logits, torch.tensor(window)).kl.tolist()
        best, own = (_best(runner, rows) for runner, rows in ((original, wanted), (other, logits)))
        found += [
            TokenDivergence(token_text(original, token_id), *facts)
            for token_id, *facts in zip(window, kl, best, own, strict=True)
        ]
    return found


def _best(runner: Runner, logits: torch.Tensor) -> list[Candidate]:
    top = logits.double().softmax(-1).max(-1)
    return [
        candidate(runner, token_id, probability)
        for token_id, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
