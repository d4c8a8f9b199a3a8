"""Losses of the steps, and whether they show that training diverges."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llmkit.training.run_state import RunState

READ_EVERY = 10  # steps
SPIKE_STEPS = 10
SPIKE_NATS = 1.0  # by which the mean loss of SPIKE_STEPS exceeds the mean before and its noise


class DivergedError(Exception):
    """The loss is not finite or has jumped: what happened, and at which step."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


class Losses:
    """Losses of the steps since the last evaluation.

    They stay on the device and are read a few steps at a time: reading one waits until a GPU has
    done all that it was given.
    """

    def __init__(self, state: RunState, mean_before: float | None) -> None:
        self._read, self._first = list(state.losses), state.step - len(state.losses)
        self._unread: list[Tensor] = []
        self._mean_before = mean_before  # of the steps before the last evaluation

    def add(self, loss: Tensor) -> None:
        """Note the loss of the next step."""
        self._unread.append(loss)
        if len(self._unread) == READ_EVERY or loss.device.type == "cpu" or not self._read:
            self.all()

    @property
    def last(self) -> float | None:
        """The last one that was read, if one was."""
        return self._read[-1] if self._read else None

    def all(self) -> list[float]:
        """Every loss. Raises DivergedError where one is not finite or several have jumped."""
        new = torch.stack(self._unread).tolist() if self._unread else []
        self._unread = []
        for loss in new:
            self._read.append(loss)
            step = self._first + len(self._read)
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss}", step)
            if len(self._read) < SPIKE_STEPS:
                continue
            before = self._mean_before or float(np.mean(self._read[:SPIKE_STEPS]))
            now = float(np.mean(self._read[-SPIKE_STEPS:]))
            # Batches by length differ: short answers may have another loss than long ones.
            noise = 3 * float(np.std(self._read)) / math.sqrt(SPIKE_STEPS)
            if now > before + SPIKE_NATS + noise:
                raise DivergedError(f"the loss rose from {before:.2f} to {now:.2f}", step)
        return self._read
