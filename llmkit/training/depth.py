"""Which depth learns most from the FLOPs that one has, by the study of docs/training.md."""

from __future__ import annotations

import math
from pathlib import Path

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import model_without_weights, sizes_of
from llmkit.data.folders import content_bytes
from llmkit.training.flops import flops_per_token

# FLOPs per second that small models reach in training, roughly. Constants instead of a
# measurement, so that a resumed run has the same sizes.
TYPICAL_FLOPS = {"cpu": 1.5e11, "mps": 1e12, "cuda": 2e13}
BYTES_PER_TOKEN = 3
MANY_EPOCHS = 5
# For a text that is read more often than that. Tokens that are rare in it are learned by heart.
DROPOUT = 0.1
SMALL_VOCAB_SIZE = 1024


def flops_in(minutes: float, device_type: str) -> float:
    """About how many FLOPs a run of so many minutes has."""
    return 60 * minutes * TYPICAL_FLOPS[device_type]


def depth_for(flops: float) -> int:
    """The largest depth whose FLOPs are at least 16 for each pair of weights in the blocks.

    A step takes 6 FLOPs per weight and token, so these are 2.7 tokens per weight.
    """
    depth = 1
    while 16 * _block_weights(depth + 1) ** 2 <= flops:
        depth += 1
    return depth


def reads_often(flops: float, sizes: ModelConfig, n_tokens: float) -> bool:
    """Whether a run reads a text of so many tokens more than five times."""
    per_token = flops_per_token(model_without_weights(sizes).n_parameters(), sizes)
    return flops / per_token / max(n_tokens, 1) > MANY_EPOCHS


def guessed_tokens(data: Path) -> float:
    """About how many tokens of BPE are in a text."""
    return (content_bytes([data]) or math.inf) / BYTES_PER_TOKEN  # of a data set of the hub: many


def _block_weights(depth: int) -> int:
    return 12 * depth * sizes_of(depth)["n_embd"] ** 2
