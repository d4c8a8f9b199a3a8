"""Causal attention with queries, keys and values side by side: (T, 3C) -> (T, C)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.architectures.graph import Attention
from llmkit.export.verify.activations import rounded_to
from llmkit.export.verify.arithmetic import Arithmetic, Type
from llmkit.export.verify.operations.kind import UNIT, UNIT_F16, Computation, Kind, gamma

_SMALLEST_F16 = 2.0**-24
_ROTATED = 64  # numbers of a head that are rotated together, or twice as many and so on
_SCORES_AT_ONCE = 1 << 20  # those of all heads would be as much as a layer's weights


def _exact(operation: Attention, inputs: Sequence[Tensor], computation: Computation) -> Tensor:
    """Each text attends to itself alone."""
    texts = torch.split(inputs[0], [len(text) for text in computation.texts])
    return torch.cat([_of_text(qkv, operation.n_head, computation.arithmetic) for qkv in texts])


def _of_text(qkv: Tensor, n_head: int, arithmetic: Arithmetic) -> Tensor:
    q, k, v = _read_heads(qkv, n_head, arithmetic)
    heads = max(1, _SCORES_AT_ONCE // len(qkv) ** 2)
    attended = []
    for some_q, some_k, some_v in zip(*(torch.split(x, heads) for x in (q, k, v)), strict=True):
        scores = _scores(some_q, some_k)
        if arithmetic.flash and arithmetic.kv == Type.F16:
            attended.append(_with_half_sums(scores, some_v))  # (H, T, D)
            continue
        weights = scores.softmax(-1)
        if not arithmetic.flash:
            weights = rounded_to(weights, arithmetic.attention)
        attended.append(weights @ some_v)
    found = torch.cat(attended)
    if _is_rotated(found, arithmetic):
        found = _rotated(found, _ROTATED)
    return found.transpose(0, 1).flatten(1)


def _with_half_sums(scores: Tensor, v: Tensor) -> Tensor:
    """`ggml_compute_forward_flash_attn_ext_f16_one_chunk`: values are summed in f16, key by key.

    A larger score than before scales the sum so far. (H, T, T) and (H, T, D) -> (H, T, D).
    """
    largest = torch.full_like(scores[..., :1], -torch.inf)  # (H, T, 1)
    total, summed = torch.zeros_like(largest), torch.zeros_like(v)
    for key in range(scores.shape[-1]):
        rows = slice(key, None)  # the queries that see this key
        score = scores[:, rows, key, None]
        now = torch.maximum(largest[:, rows], score)
        scale, weight = (largest[:, rows] - now).exp(), (score - now).exp()
        kept = rounded_to(summed[:, rows] * scale, Type.F16)
        summed[:, rows] = rounded_to(kept + weight * v[:, None, key], Type.F16)
        total[:, rows] = total[:, rows] * scale + weight
        largest[:, rows] = now
    return summed / total


def _bound(
    operation: Attention, inputs: Sequence[Tensor], _exact: Tensor, computation: Computation
) -> Tensor:
    """Of one text. D is the width of a head.

    A score is off by e = gamma(D) scale sum |q k|, and its distance to the row's maximum rounded
    once; exp adds two units in the last place. A weight p is then off by p times its own e and
    the mean e of its row, by which it is divided; sums over keys follow. Where weights are read in
    f16 each may be rounded to a neighbour. TF32 of CUDA rounds as f16 does, but not to multiples of
    f16's smallest number.
    """
    q, k, v = _read_heads(inputs[0].double(), operation.n_head, computation.arithmetic)
    n_tokens, width = q.shape[1:]
    scores = _scores(q, k)
    p = scores.softmax(-1)
    e = gamma(width + 4) * (q.abs() @ k.abs().transpose(-2, -1)) / width**0.5
    below_largest = scores.amax(-1, keepdim=True) - scores
    e += UNIT * below_largest.masked_fill(_future(n_tokens), 0) + 4 * UNIT
    e += (p * e).sum(-1, keepdim=True)
    in_halves = computation.arithmetic.attention == Type.F16
    if in_halves:
        e += 2 * UNIT_F16
    bound: Tensor = (p * (e + gamma(2 * n_tokens + 8))) @ v.abs()  # (H, T, D)
    if in_halves:
        bound += _SMALLEST_F16
    return bound.transpose(0, 1).flatten(1)


def _read_heads(qkv: Tensor, n_head: int, arithmetic: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
    """What the products read of queries, keys and values: (T, 3C) -> three of (H, T, D)."""
    q, k, v = (part.reshape(len(qkv), n_head, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    if _is_rotated(v, arithmetic):
        width = v.shape[-1]
        q, k = (_rotated(x, width & -width) for x in (q, k))  # the largest power of 2 in it
        v = _rotated(v, _ROTATED)
    k, v = (rounded_to(kept, arithmetic.kv) for kept in (k, v))
    q = rounded_to(q, arithmetic.attention)
    if arithmetic.attention == Type.F16:
        k, v = (rounded_to(x, Type.F16) for x in (k, v))
    return q, k, v


def _is_rotated(v: Tensor, arithmetic: Arithmetic) -> bool:
    """Whether llama.cpp rotates heads to round them better (`attn_rot_k` in llama-kv-cache.cpp)."""
    return arithmetic.kv in (Type.Q8_0, Type.Q4_0) and v.shape[-1] % _ROTATED == 0


def _rotated(x: Tensor, n: int) -> Tensor:
    """Each n numbers of the last dimension multiplied by Hadamard's matrix, its own inverse."""
    hadamard = torch.ones(1, 1, dtype=x.dtype)
    while len(hadamard) < n:
        upper, lower = torch.cat((hadamard, hadamard), 1), torch.cat((hadamard, -hadamard), 1)
        hadamard = torch.cat((upper, lower))
    rotated: Tensor = x.reshape(*x.shape[:-1], -1, n) @ hadamard / n**0.5
    return rotated.flatten(-2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """(H, T, T), minus infinity for keys that come later."""
    n_tokens, width = q.shape[1:]
    scores: Tensor = q @ k.transpose(-2, -1) / width**0.5
    return scores.masked_fill(_future(n_tokens), -torch.inf)


def _future(n_tokens: int) -> Tensor:
    return torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)


ATTENTION = Kind(_exact, _bound, by_token=False)
