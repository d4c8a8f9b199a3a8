"""The head and the cross-entropy in one, in chunks: the logits of a batch are never all in memory.

Of 8 sequences of GPT-2 the float32 logits alone take 8 x 1024 x 50257 x 4 bytes = 1.6 GB, and
autograd would keep several such tensors. Here a chunk's logits become its part of the loss and of
the gradients at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.device import by_compiler

# Logits at a time: products that are still large. 64 MB in float32, on a GPU 2 GB in bfloat16.
CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 30}
# Logits of one softmax on a CPU, for each thread: 1 MB in float32, which its cache holds.
CACHED_LOGITS = 1 << 18
# A GPU multiplies matrices several times slower if their rows are not aligned, as 50,257 are not.
ROW_MULTIPLE = {"cuda": 64}


def head_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, compiled: bool = False
) -> Tensor:
    """Summed cross-entropy in nats, a float32 scalar, of the logits hidden @ weight^T.

    hidden: (..., C), weight: (V, C), targets: (...), token ids. Under autocast the products are
    in its type; softmax and sums are in float32 in any case. `compiled`: by torch.compile.
    """
    kind = hidden.device.type
    with_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        flat = hidden.reshape(-1, hidden.shape[-1]).to(with_type)
        inputs = flat, weight.to(with_type), targets.flatten(), compiled
        loss: Tensor = _HeadCrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]
    return loss


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (n, V) and targets (n,): the summed loss and its gradient by the logits."""
    log_p = logits.log_softmax(1, dtype=torch.float32)
    targets_of = torch.arange(len(logits), device=logits.device), targets
    of_targets = log_p[targets_of]
    gradient = log_p.exp().to(logits.dtype)  # the probabilities, less 1 at the target
    gradient[targets_of] = of_targets.expm1().to(logits.dtype)  # scatter_ is slow on a CPU
    return -of_targets.sum(), gradient


def _in_pieces(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same, with pieces that the cache of a CPU holds. The logits become the gradient."""
    n = max(CACHED_LOGITS * torch.get_num_threads() // logits.shape[1], 1)
    loss = torch.zeros(())
    for piece, its_targets in zip(torch.split(logits, n), torch.split(targets, n), strict=True):
        of_piece, gradient = _loss_and_gradient(piece, its_targets)
        loss += of_piece
        piece.copy_(gradient)
    return loss, logits


class _HeadCrossEntropy(torch.autograd.Function):
    """Both gradients are ready when the loss is; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, compiled: bool
    ) -> Tensor:
        wants_hidden, wants_weight, *_ = ctx.needs_input_grad
        kind, n_words = hidden.device.type, len(weight)
        loss_and_gradient = _in_pieces if kind == "cpu" else _loss_and_gradient
        if compiled:
            loss_and_gradient = by_compiler(_loss_and_gradient)
        n_filling = -n_words % ROW_MULTIPLE.get(kind, 1)
        weight = F.pad(weight, (0, 0, 0, n_filling)) if n_filling else weight  # (W, C), W >= V
        loss = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        n_rows = max(CHUNK_LOGITS.get(kind, CHUNK_LOGITS["cpu"]) // n_words, 1)
        n_chunks = max(math.ceil(len(hidden) / n_rows), 1)
        n_rows = math.ceil(len(hidden) / n_chunks)  # chunks of one size
        for begin in range(0, len(hidden), n_rows):
            rows = slice(begin, begin + n_rows)
            x, wanted = hidden[rows], targets[rows]  # (n, C), (n,)
            logits = x @ weight.T  # (n, W)
            if not wants_hidden and not wants_weight:
                loss += F.cross_entropy(logits[:, :n_words].float(), wanted, reduction="sum")
                continue
            if n_filling:
                logits[:, n_words:] = -torch.inf
            of_chunk, d_logits = loss_and_gradient(logits, wanted)
            loss += of_chunk
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.T @ x
        ctx.save_for_backward(d_hidden, d_weight if d_weight is None else d_weight[:n_words])
        ctx.weight_type = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        by_hidden = None if d_hidden is None else d_hidden * scale
        by_weight = None if d_weight is None else (d_weight * scale).to(ctx.weight_type)
        return by_hidden, by_weight, None, None
