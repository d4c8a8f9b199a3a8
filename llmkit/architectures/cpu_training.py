"""GELU, dropout and short causal attention, faster than PyTorch's: training on a CPU.

They compute what gpt2.py says, forward and backward; tests hold them equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Values at a time, for each thread: 256 KB in float32, so that the passes over them stay in cache.
CACHED_VALUES = 1 << 16
QUERIES = 128  # of 256 tokens, three quarters of the products are left
# gelu(x) = x * sigmoid(v), v = LINEAR * x + CUBIC * x^3; 1/2 (1 + tanh(a)) is sigmoid(2 a).
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR


def gelu(x: Tensor) -> Tensor:
    """GELU by the tanh formula of a float32 or bfloat16 tensor of any shape."""
    return _Gelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def dropout(x: Tensor, p: float) -> Tensor:
    """A tensor with values set to 0 with probability p, and the others divided by 1 - p."""
    return x * _kept(x, p)


def short_attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), with dropout p of its weights: (B, H, T, D).

    Keeps B x H x T x T weights for the backward pass.
    """
    return _ShortAttention.apply(q, k, v, p)  # type: ignore[no-any-return, no-untyped-call]


def _kept(x: Tensor, p: float) -> Tensor:
    """Factors for the values of a tensor: 0 with probability p, to 2^-17, else 1 / (1 - p).

    A draw of 64 bits serves four values. PyTorch makes one for each, and on one core.
    """
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    limit = min(round(p * 2**16), 2**16 - 1) - 2**15
    is_kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= limit
    return is_kept.to(x.dtype).mul_(1 / (1 - p))


class _Gelu(torch.autograd.Function):
    """PyTorch computes a tanh forward and another one backward. Here forward leaves the slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        linear, n = torch.tensor(LINEAR), CACHED_VALUES * torch.get_num_threads()
        pieces = (torch.split(whole.view(-1), n) for whole in (x, y, slope))
        for x_piece, y_piece, slope_piece in zip(*pieces, strict=True):
            z = x_piece.to(torch.float32, copy=True)
            v = torch.addcmul(linear, z, z, value=CUBIC).mul_(z)
            s = v.sigmoid()
            third = v.sub_(z, alpha=2 / 3 * LINEAR)  # of x v' = 3 v - 2 LINEAR x
            third.addcmul_(third, s, value=-1)
            slope_piece.copy_(torch.addcmul(s, s, third, value=3))  # s + s (1 - s) x v'
            y_piece.copy_(z.mul_(s))
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return dy * slope  # type: ignore[no-any-return]


class _ShortAttention(torch.autograd.Function):
    """QUERIES at a time, which are not multiplied with the keys after the last of them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *qkv, ctx.p = inputs
        q, k, v = (x.flatten(0, 1) for x in qkv)  # (B x H, T, D)
        y = torch.empty_like(q)
        weights, kept = [], []
        for rows, seen in _parts(q.shape[1]):
            future = q.new_full((rows.stop - rows.start, seen.stop), -torch.inf)
            future.triu_(rows.start + 1)
            scores = torch.baddbmm(future, q[:, rows], k[:, seen].mT, alpha=_scale(q))
            weights.append(w := scores.softmax(-1))
            if ctx.p:
                kept.append(_kept(w, ctx.p))
                w = w * kept[-1]
            y[:, rows].baddbmm_(w, v[:, seen], beta=0)
        ctx.save_for_backward(q, k, v, *weights, *kept)
        return y.view_as(qkv[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        parts = [*_parts(q.shape[1])]
        weights, kept = saved[: len(parts)], saved[len(parts) :] or [None] * len(parts)
        shape, dy = dy.shape, dy.flatten(0, 1)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        beta = 0  # of dk and dv there is nothing before the last rows, which see all keys
        for w, factors, (rows, seen) in reversed([*zip(weights, kept, parts, strict=True)]):
            dw, used = dy[:, rows] @ v[:, seen].mT, w
            if factors is not None:
                dw, used = dw.mul_(factors), w * factors
            d_scores = torch._softmax_backward_data(dw, w, -1, w.dtype)
            dq[:, rows].baddbmm_(d_scores, k[:, seen], beta=0)
            dk[:, seen].baddbmm_(d_scores.mT, q[:, rows], beta=beta)
            dv[:, seen].baddbmm_(used.mT, dy[:, rows], beta=beta)
            beta = 1
        return (*(x.view(shape) for x in (dq.mul_(_scale(q)), dk.mul_(_scale(q)), dv)), None)


def _parts(n: int) -> Iterator[tuple[slice, slice]]:
    """Of n queries: the rows of each part, and the keys that it sees."""
    for begin in range(0, n, QUERIES):
        end = min(begin + QUERIES, n)
        yield slice(begin, end), slice(0, end)


def _scale(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])
