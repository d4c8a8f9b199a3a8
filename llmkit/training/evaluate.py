"""Validation loss on fixed windows of held-out tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.architectures.base import LanguageModel
from llmkit.training.cross_entropy import head_cross_entropy


@torch.inference_mode()
def validation_loss(model: LanguageModel, held_out: NDArray[np.int64], batch_size: int) -> float:
    """Mean loss in nats per token over windows (n, T + 1)."""
    total = 0.0
    for start in range(0, len(held_out), batch_size):
        batch = torch.from_numpy(held_out[start : start + batch_size]).to(model.device)
        hidden = model.hidden_states(batch[:, :-1])  # (B, T, C)
        total += float(head_cross_entropy(hidden, model.head_weight, batch[:, 1:]))
    return total / held_out[:, 1:].size
