"""Where fine-tuning starts: the base as a checkpoint of its own, grown by what it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llmkit.architectures.base import HEAD, LanguageModel, ModelConfig, Role
from llmkit.architectures.registry import family_of, tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint, label_ids, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    BLOCKS_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
)
from llmkit.checkpoint.tensors import build_model, save_tensors
from llmkit.console import say
from llmkit.device import device_with_float64
from llmkit.errors import ConfigError
from llmkit.files import write_text
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.label_head import expanded_head, new_head
from llmkit.lora import adapter_tensors, add_lora, peft_config
from llmkit.modelfiles.prompt_format import PromptFormat
from llmkit.quant import dequantize, quantize
from llmkit.quant.types import PackedRows, QuantType
from llmkit.quantization.qat import matrix_types
from llmkit.quantization.tensor_types import quantization
from llmkit.quantization.walk import error_feedback
from llmkit.tokenizer import Tokenizer
from llmkit.training.run_folder import RunFolder
from llmkit.training.task import TensorFiles


@dataclass(frozen=True)
class Start:
    """A base with what its fine-tuning adds: tokens, a prompt format, labels, an adapter."""

    base: Checkpoint
    tokenizer: Tokenizer
    prompt_format: PromptFormat
    labels: tuple[str, ...]
    config: FinetuneConfig
    seed: int

    @property
    def sizes(self) -> ModelConfig:
        """The model's sizes. A classifier's head is its own, never the token embedding."""
        tied = self.base.config.tie_embeddings and not self.labels
        vocab_size = self.tokenizer.vocab_size
        return replace(self.base.config, vocab_size=vocab_size, tie_embeddings=tied)

    def __post_init__(self) -> None:
        if self.config.qat is None:
            return
        qtype = quantization(self.config.qat).base
        if qtype not in self.types.values():
            raise ConfigError(
                f"{qtype.name} needs rows whose length is a multiple of {qtype.block_size}; "
                f"{self.base.folder} has none; choose another type"
            )

    @property
    def types(self) -> dict[str, QuantType]:
        """The types of the blocks that matrices are trained as; empty without `qat`."""
        if self.config.qat is None:
            return {}
        return matrix_types(self.sizes, quantization(self.config.qat))

    def write(
        self,
        folder: RunFolder,
        calibration: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Write the whole checkpoint as it is before the first step.

        The blocks to train as are the rounded weights, or with `calibration`, token ids (n, T),
        those that error feedback gives, computed on `device` unless it lacks float64; then the
        weights begin at what these blocks hold.
        """
        out = folder.folder
        self.tokenizer.save(out / TOKENIZER_FILE)
        weights = self._weights()
        if self.types:
            blocks, weights = self._first_blocks(weights, calibration, device)
            save_tensors(out / BLOCKS_FILE, blocks, step=0)
        save_tensors(out / MODEL_FILE, weights, step=0)
        lora = self.config.lora
        if lora is not None:
            model = build_model(self.sizes, weights, str(out / MODEL_FILE))
            torch.manual_seed(self.seed)
            add_lora(model, lora)
            save_tensors(out / ADAPTER_FILE, adapter_tensors(model), step=0)
            content = peft_config(lora, str(self.base.folder), family_of(self.sizes))
            write_text(out / ADAPTER_CONFIG_FILE, json.dumps(content, indent=2) + "\n")
        else:  # a preparation that was cut short may have left one
            for name in (ADAPTER_FILE, ADAPTER_CONFIG_FILE):
                (out / name).unlink(missing_ok=True)
        save_config(
            out,
            CheckpointConfig(
                self.sizes, self.prompt_format, self.labels, self.config.qlora, self.config.qat
            ),
        )

    def head(self, rows: Tensor) -> Tensor:
        """The head (V, C) of a classifier whose labels have the rows (n_labels, C)."""
        ids = label_ids(self.tokenizer, self.labels)
        return expanded_head(rows, ids, self.sizes.vocab_size)

    def trained_tensors(self, model: LanguageModel) -> TensorFiles:
        """What the steps change of this checkpoint's files: the adapter, or all of the model."""
        if self.config.lora is not None:
            return {ADAPTER_FILE: adapter_tensors(model)}
        return {MODEL_FILE: model.state_dict()}

    def _first_blocks(
        self,
        weights: dict[str, Tensor],
        calibration: Tensor | None,
        device: torch.device | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The blocks of `weights`, and the weights with those that feedback moved."""
        blocks: dict[str, PackedRows] = {}
        moved: dict[str, Tensor] = {}
        if calibration is not None:
            model = build_model(self.sizes, weights, str(self.base.folder))
            types = {name: qtype for name, qtype in self.types.items() if qtype.supports_gptq}
            blocks = error_feedback(model.to(device_with_float64(device)), types, calibration)
            for name, rows in blocks.items():
                floats = dequantize(rows, types[name], tuple(weights[name].shape))
                moved[name] = torch.from_numpy(floats)
        for name in self.types.keys() - blocks.keys():
            blocks[name] = quantize(weights[name].float().numpy(), self.types[name], name)
        return {name: torch.from_numpy(rows) for name, rows in blocks.items()}, weights | moved

    def _weights(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        n_new = self.tokenizer.vocab_size - self.base.config.vocab_size
        with self.base.open_merged() as tensors:
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        for spec in tensor_specs(self.base.config):
            if spec.role in (Role.TOKEN_EMBEDDING, Role.HEAD) and n_new:
                name = spec.checkpoint_name
                weights[name] = _with_rows(weights[name], n_new, generator)
        if self.labels:
            weights[HEAD] = self.head(new_head(len(self.labels), self.sizes.n_embd, generator))
        return weights


def base_that_answers(folder: Path, advice: str) -> Checkpoint:
    """Open a base. Raises ConfigError, with what to do instead, for a classifier."""
    base = load_checkpoint(folder)
    if base.labels:
        raise ConfigError(f"{folder} is a classifier; {advice}")
    return base


def grown_tokenizer(
    base: Checkpoint,
    config: FinetuneConfig,
    *,
    special: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Tokenizer:
    """The base's tokenizer with every token that the format or the labels need.

    Raises ConfigError naming those that are missing where they may not be added.
    """
    tokenizer = base.tokenizer
    known = {tokenizer.tokens[token_id] for token_id in tokenizer.special_ids}
    new_special = [token for token in dict.fromkeys(special) if token not in known]
    new_words = [word for word in dict.fromkeys(words) if tokenizer.word_id(word) is None]
    missing = ", ".join(repr(token) for token in (*new_special, *new_words))
    if not missing:
        return tokenizer
    if not config.add_tokens:
        raise ConfigError(
            f"the tokenizer of {base.folder} has no single token for {missing}; add "
            "them with --add-tokens"
        )
    if config.lora is not None and new_special:
        raise ConfigError(
            f"LoRA does not train embeddings, so new tokens ({missing}) would stay untrained; "
            "fine-tune without LoRA first, or choose a prompt format without new tokens"
        )
    say(f"tokens added: {missing}")
    return tokenizer.with_tokens(special=new_special, words=new_words)


def _with_rows(matrix: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A matrix (V, C) with `n` more rows, near the mean of those there.

    So a new token begins as an average one and shifts no probabilities much (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    mean = matrix.mean(dim=0)
    noise = torch.randn(n, matrix.shape[1], generator=generator) * 0.1 * matrix.std(dim=0)
    return torch.cat((matrix, mean + noise))
