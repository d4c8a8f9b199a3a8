"""Pretraining: the next token of windows of the training text, in random order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel, ModelConfig
from llmkit.architectures.registry import new_model
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.layout import MODEL_FILE
from llmkit.data.sampler import window_starts
from llmkit.data.tokens import TokenShards, open_token_file, windows
from llmkit.device import copied_to
from llmkit.generation import generate_ids
from llmkit.sampling import Sampling
from llmkit.tokenizer_files import load_tokenizer
from llmkit.training.config import TrainingConfig
from llmkit.training.cross_entropy import head_cross_entropy
from llmkit.training.distributed import ALONE, Processes
from llmkit.training.evaluate import validation_loss
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState
from llmkit.training.task import Evaluation, TensorFiles

SAMPLE_TOKENS = 60


class Pretraining:
    """The token files of a prepared run and the model that learns from them (a Task)."""

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        config: TrainingConfig,
        sizes: ModelConfig,
        tokens: TokenShards | None = None,  # prepared data; else the token file of the run
        processes: Processes = ALONE,
    ) -> None:
        self.folder, self.config, self.processes = folder.folder, config, processes
        self.tokenizer = load_tokenizer(self.folder)
        self.sizes = replace(sizes, vocab_size=self.tokenizer.vocab_size)
        self.tokens = tokens or TokenShards(
            [open_token_file(folder.token_file("train"), self.sizes.vocab_size)]
        )
        validation = open_token_file(folder.token_file("validation"), self.sizes.vocab_size)
        self.held_out = windows(validation, self.sizes.context_length, config.eval_tokens)
        self.batch_tokens = config.batch_size * self.sizes.context_length
        self.bytes_per_token = state.data_bytes["validation"] / len(validation)

    @property
    def tokens_per_step(self) -> float:
        """Every batch is full."""
        return self.batch_tokens

    def load_model(self, step: int, device: torch.device) -> LanguageModel:
        """A new model from the seed, or the one saved."""
        if step:
            return load_checkpoint(self.folder).load_model(device)
        torch.manual_seed(self.config.seed)
        return new_model(self.sizes).to(device)

    @property
    def n_parts(self) -> int:
        """Micro-batches in this process's share of a batch."""
        return math.ceil(self.processes.share(self.config.batch_size) / self.config.micro_batch)

    def loss(self, model: LanguageModel, step: int, part: int) -> Tensor:
        """Cross-entropy of every token of the part, given those before it."""
        inputs, targets = self._part(step, part, model.device)  # (b, T) each
        hidden = model.hidden_states(inputs)  # (b, T, C)
        compiled = self.config.compile
        total = head_cross_entropy(hidden, model.head_weight, targets, compiled=compiled)
        return total / self.batch_tokens

    def evaluate(self, model: LanguageModel) -> Evaluation:
        """Loss on fixed windows of the held-out text."""
        loss = validation_loss(model, self.held_out, self.config.micro_batch, self.processes)
        return Evaluation(loss, val_bits_per_byte=loss / math.log(2) / self.bytes_per_token)

    def samples(self, model: LanguageModel) -> list[str]:
        """The beginning of a document."""
        end = self.tokenizer.end_of_text_id
        sampling = Sampling(seed=self.config.seed, top_k=40, max_tokens=SAMPLE_TOKENS)
        text = self.tokenizer.decode(generate_ids(model, [end], sampling, {end}))
        return [f"sample: {text!r}"]

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """All of the model."""
        return {MODEL_FILE: model.state_dict()}

    def _part(self, step: int, part: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The windows of a part of a step: inputs and the tokens that follow them."""
        length, config = self.sizes.context_length, self.config
        share = self.processes.share(config.batch_size)
        done = part * config.micro_batch
        n = min(config.micro_batch, share - done)
        first = step * config.batch_size + self.processes.rank * share + done
        starts = window_starts(len(self.tokens), length, config.seed, first, n)
        examples = np.stack([self.tokens.read(int(start), length + 1) for start in starts])
        batch = copied_to(device, torch.from_numpy(examples))
        return batch[:, :-1], batch[:, 1:]
