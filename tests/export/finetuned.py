"""Checkpoints as fine-tuning leaves them, made without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from llmkit.architectures.gpt2 import GPT2
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from llmkit.checkpoint.tensors import save_tensors
from llmkit.files import write_text
from llmkit.finetuning.label_head import expanded_head
from llmkit.lora import LoRAConfig, adapter_tensors, add_lora, peft_config


def with_adapter(
    base: Checkpoint, folder: Path, rank: int = 4, base_quant: str | None = None, **lora: Any
) -> Checkpoint:
    """A copy of a checkpoint with a random adapter whose two halves both count."""
    shutil.copytree(base.folder, folder)
    config = LoRAConfig(rank=rank, **lora)
    model = base.load_model()
    add_lora(model, config)
    generator = torch.Generator().manual_seed(rank)
    tensors = {
        name: 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in adapter_tensors(model).items()
    }
    save_tensors(folder / ADAPTER_FILE, tensors, step=0)
    write_text(folder / ADAPTER_CONFIG_FILE, json.dumps(peft_config(config, "base", GPT2)))
    content = CheckpointConfig(base.config, base.prompt_format, base.labels, base_quant)
    save_config(folder, content)
    return load_checkpoint(folder)


def as_classifier(base: Checkpoint, folder: Path, labels: tuple[str, ...]) -> Checkpoint:
    """A copy of an untied checkpoint whose head has random rows for the labels."""
    shutil.copytree(base.folder, folder)
    weights = dict(base.load_model().state_dict())
    ids = [token_id for label in labels if (token_id := base.tokenizer.word_id(label)) is not None]
    generator = torch.Generator().manual_seed(1)
    head = 0.3 * torch.randn(len(labels), base.config.n_embd, generator=generator)
    weights["lm_head.weight"] = expanded_head(head, ids, base.config.vocab_size)
    save_tensors(folder / "model.safetensors", weights, step=0)
    save_config(folder, CheckpointConfig(base.config, base.prompt_format, labels))
    return load_checkpoint(folder)
