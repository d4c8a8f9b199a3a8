"""Validation loss on fixed windows of held-out tokens."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from llmkit.architectures.base import LanguageModel


@torch.inference_mode()
def validation_loss(model: LanguageModel, held_out: NDArray[np.int64], batch_size: int) -> float:
    """Mean loss in nats per token over windows (n, T + 1)."""
    total = 0.0
    for start in range(0, len(held_out), batch_size):
        batch = torch.from_numpy(held_out[start : start + batch_size]).to(model.device)
        logits = model(batch[:, :-1]).float()  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        total += float(losses)
    return total / held_out[:, 1:].size
