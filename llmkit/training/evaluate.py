"""Validation loss on fixed windows of held-out tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.architectures.base import LanguageModel
from llmkit.training.cross_entropy import head_cross_entropy
from llmkit.training.distributed import ALONE, Processes


@torch.no_grad()  # FSDP2 cannot train with what it gathers in inference mode
def validation_loss(
    model: LanguageModel,
    held_out: NDArray[np.int64],
    batch_size: int,
    processes: Processes = ALONE,
) -> float:
    """Mean loss in nats per token over windows (n, T + 1), divided among the processes."""
    total = 0.0
    for start in range(0, len(held_out), batch_size * processes.world):
        first = start + batch_size * processes.rank
        own = held_out[first : first + batch_size]
        # FSDP2 needs every process to compute: what has none left repeats a window.
        batch = torch.from_numpy(own if len(own) else held_out[:1]).to(model.device)
        hidden = model.hidden_states(batch[:, :-1])  # (B, T, C)
        loss = float(head_cross_entropy(hidden, model.head_weight, batch[:, 1:]))
        total += loss if len(own) else 0.0
    return processes.total(total) / held_out[:, 1:].size
