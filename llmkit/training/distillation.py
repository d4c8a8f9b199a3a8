"""Distillation: the student learns to predict what the teacher does, on the teacher's own text.

The teacher's probabilities say more of each position than the one token that follows, and so a
quantized student comes back closer to its own float original than by learning the text again
(Liu et al. 2023, "LLM-QAT", https://arxiv.org/abs/2305.17888).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llmkit.architectures.base import LanguageModel, ModelConfig
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.training.config import TrainingConfig
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState
from llmkit.training.task import Evaluation


class Distillation(Pretraining):
    """The token files of a prepared run, and the teacher of the model in it (a Task)."""

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        config: TrainingConfig,
        sizes: ModelConfig,
        teacher: LanguageModel,
    ) -> None:
        super().__init__(folder, state, config, sizes)
        self.teacher = teacher

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """The model that was saved last; a copy of the teacher at the beginning."""
        return load_checkpoint(self.folder).load_model(device, for_training=True)

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """Mean KL(teacher || model) in nats over every position of the batch."""
        inputs, _ = self._part(step, part, model.device)  # (b, T)
        return summed_kl(self.teacher, model, inputs) / self.batch_tokens

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Loss on fixed windows of the held-out text, and the mean KL there."""
        kl = mean_kl(self.teacher, model, self.held_out, self.config.micro_batch)
        return replace(super().evaluate(model), kl=kl)


def summed_kl(teacher: LanguageModel, student: LanguageModel, inputs: Tensor) -> Tensor:
    """Sum of KL(teacher || student) in nats over the positions of token ids (B, T)."""
    with torch.no_grad():
        wanted = teacher(inputs).float().log_softmax(dim=-1)  # (B, T, V)
    said = student(inputs).float().log_softmax(dim=-1)
    return F.kl_div(said, wanted, reduction="sum", log_target=True)


@torch.inference_mode()
def mean_kl(
    teacher: LanguageModel, student: LanguageModel, held_out: NDArray[np.int64], batch_size: int
) -> float:
    """Mean KL(teacher || student) in nats per token over windows (n, T + 1)."""
    total = 0.0
    for start in range(0, len(held_out), batch_size):
        batch = torch.from_numpy(held_out[start : start + batch_size, :-1]).to(student.device)
        total += float(summed_kl(teacher, student, batch))
    return total / held_out[:, 1:].size
