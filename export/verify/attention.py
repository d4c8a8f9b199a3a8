"""Attention as llama.cpp computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.export.verify.activations import rounded_to
from llmkit.export.verify.arithmetic import CPU, Arithmetic, Type

_SCORES_AT_ONCE = 1 << 20  # those of all heads would be as much as a layer's weights


def attention(qkv: Tensor, n_head: int, arithmetic: Arithmetic = CPU) -> Tensor:
    """Causal attention with queries, keys and values side by side: (T, 3C) -> (T, C)."""
    q, k, v = read_heads(qkv, n_head, arithmetic)
    heads = max(1, _SCORES_AT_ONCE // len(qkv) ** 2)
    parts = zip(*(torch.split(x, heads) for x in (q, k, v)), strict=True)
    attended = [_attend(q, k, v, arithmetic.attention) for q, k, v in parts]  # (H, T, D)
    return torch.cat(attended).transpose(0, 1).flatten(1)


def read_heads(qkv: Tensor, n_head: int, arithmetic: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
    """What the products read of queries, keys and values: (T, 3C) -> three of (H, T, D)."""
    q, k, v = (part.reshape(len(qkv), n_head, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    k, v = (rounded_to(kept, arithmetic.kv) for kept in (k, v))
    q, k, v = (rounded_to(x, arithmetic.attention) for x in (q, k, v))
    return q, k, v


def _attend(q: Tensor, k: Tensor, v: Tensor, read: Type) -> Tensor:
    n_tokens, width = q.shape[1:]
    future = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-2, -1) / width**0.5).masked_fill(future, -torch.inf)  # (H, T, T)
    return rounded_to(scores.softmax(-1), read) @ v
