"""Attention as llama.cpp computes it in single steps, not fused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmkit.architectures.gpt2 import attention_by_hand

_SCORES_AT_ONCE = 1 << 20  # those of all heads would be as much as a layer's weights

AttentionFunction = Callable[[Tensor, int], Tensor]


def attention(qkv: Tensor, n_head: int) -> Tensor:
    """Causal attention with queries, keys and values side by side: (T, 3C) -> (T, C)."""
    q, k, v = (part.reshape(len(qkv), n_head, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    heads = max(1, _SCORES_AT_ONCE // len(qkv) ** 2)
    parts = zip(*(torch.split(x, heads) for x in (q, k, v)), strict=True)
    attended = torch.cat([attention_by_hand(*part) for part in parts])  # (H, T, D)
    return attended.transpose(0, 1).flatten(1)


def with_f16_cache(qkv: Tensor, n_head: int) -> Tensor:
    """The same with keys and values kept as f16, as llama.cpp does unless told otherwise."""
    q, k, v = qkv.chunk(3, dim=-1)
    return attention(torch.cat((q, k.half().to(q), v.half().to(q)), dim=-1), n_head)
