"""What a training loop trains on: the loop knows steps and saving, a task knows the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel

# Tensors by the name of their file and their own, such as {"model.safetensors": {"h.0...": ...}}.
TensorFiles = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """What held-out data say. `val_loss` in nats: per token, or per record without tokens to tell.

    The others are None where a task has no such thing.
    """

    val_loss: float
    val_bits_per_byte: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    kl: float | None = None  # nats per token, from what the model learns to be like

    def __str__(self) -> str:
        parts = [f"validation loss {self.val_loss:.4f}"]
        if self.val_bits_per_byte is not None:
            parts.append(f"{self.val_bits_per_byte:.3f} bits per byte")
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy:.1%}")
        if self.margin is not None:
            parts.append(f"margin {self.margin:.3f}")
        if self.kl is not None:
            parts.append(f"KL {self.kl:.5f}")
        return ", ".join(parts)


class Task(Protocol):
    """A model, its data and its loss.

    Everything random must follow from the step (and the run's seed), so that a resumed run goes
    on exactly where it stopped.
    """

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens in a batch."""
        ...

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """The model as it is after `step` steps; parameters to train require gradients."""
        ...

    @property
    def n_parts(self) -> int:
        """In how many parts a batch is computed, one after the other, to save memory."""
        ...

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """A float32 scalar; those of a step's parts add up to the mean loss of its batch.

        With several processes the parts of all of them add up to it.
        """
        ...

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Measure the model on held-out data."""
        ...

    def samples(self, model: LanguageModel) -> list[str]:
        """Lines that show what the model does by now."""
        ...

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """Every file of the run's folder that the steps change: its name and all its tensors."""
        ...
