"""Where a model prefers another token than the original model does after the same text."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import ConfigError
from llmkit.export.llamacpp.runners import Runner, candidate, token_text
from llmkit.generation import Candidate


def differences(
    prompt: Sequence[int], ids: Sequence[int], greedy: Sequence[Candidate], original: Runner
) -> list[Candidate | None]:
    """What the original model prefers at the place of each token; None where it is the same token.

    The original reads the same prompt and the same tokens (teacher forcing). `ids` follow `prompt`;
    `greedy` is the most probable token of the other model at each place. Raises ConfigError where
    the two have different vocabularies.
    """
    if not ids:
        return []
    for own in greedy:
        if token_text(original, own.id) != own.token:
            raise ConfigError(
                f"the models have different vocabularies: token {own.id} is "
                f"{own.token!r} in one, {token_text(original, own.id)!r} in the other"
            )
    (logits,) = original.branches(prompt, [ids])  # (n, V)
    best = logits.double().softmax(-1).max(-1)
    pairs = zip(greedy, best.indices.tolist(), best.values.tolist(), strict=True)
    return [None if own.id == id_ else candidate(original, id_, p) for own, id_, p in pairs]
