"""The head and the cross-entropy in one, in chunks: the logits of a batch are never all in memory.

Of 8 sequences of GPT-2 the float32 logits alone take 8 x 1024 x 50257 x 4 bytes = 1.6 GB, and
autograd would keep several such tensors. Here a chunk's logits become its part of the loss and of
the gradients at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 24  # logits at a time: 64 MB in float32, and products that are still large


def head_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats, a float32 scalar, of the logits hidden @ weight^T.

    hidden: (..., C), weight: (V, C), targets: (...), token ids. Under autocast the products are
    in its type; softmax and sums are in float32 in any case.
    """
    kind = hidden.device.type
    with_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        flat = hidden.reshape(-1, hidden.shape[-1]).to(with_type)
        loss: Tensor = _HeadCrossEntropy.apply(flat, weight.to(with_type), targets.flatten())  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    """Both gradients are ready when the loss is; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        loss = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        n_rows = max(CHUNK_LOGITS // len(weight), 1)
        for begin in range(0, len(hidden), n_rows):
            rows = slice(begin, begin + n_rows)
            x, wanted = hidden[rows], targets[rows, None]  # (n, C), (n, 1)
            logits = (x @ weight.T).float()  # (n, V)
            log_total = logits.logsumexp(dim=1, keepdim=True)  # (n, 1)
            loss += (log_total - logits.gather(1, wanted)).sum()
            if not wants_hidden and not wants_weight:
                continue
            # The loss's gradient by the logits: the probabilities, less 1 at the target.
            probabilities = logits.sub_(log_total).exp_()
            d_logits = probabilities.scatter_add_(
                1, wanted, torch.full_like(wanted, -1, dtype=torch.float32)
            ).to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.T @ x
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_type = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        by_hidden = None if d_hidden is None else d_hidden * scale
        by_weight = None if d_weight is None else (d_weight * scale).to(ctx.weight_type)
        return by_hidden, by_weight, None
