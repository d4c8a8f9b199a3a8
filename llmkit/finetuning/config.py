"""Settings of a fine-tuning run, each default with its reason."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from llmkit.errors import ConfigError
from llmkit.lora import LoRAConfig
from llmkit.quantization.tensor_types import quantization
from llmkit.training.config import TrainingConfig
from llmkit.validation import validated

DEFAULT_LORA_RANK = 16
# A new start at a pretrained minimum: smaller than in pretraining, and less for the matrices
# themselves than for adapters, which begin at nothing (LoRA paper, table 9 ff.).
LEARNING_RATE = 5e-4
LORA_LEARNING_RATE = 2e-3


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class FinetuneConfig:
    """What is trained of a base, and on how many passes over the records."""

    lora: LoRAConfig | None = None
    qlora: str | None = None  # the GGUF type of the base's blocks
    qat: str | None = None  # the GGUF type that the weights are trained for
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3
    add_tokens: bool = False  # may grow the vocabulary by what the format or the labels lack
    split: tuple[float, float, float] = (0.85, 0.05, 0.10)  # train, validation, test

    def __post_init__(self) -> None:
        if self.qlora is not None:
            object.__setattr__(self, "qlora", _trainable(self.qlora, "LoRA without qlora"))
            if self.lora is None:
                raise ConfigError("qlora trains LoRA adapters; set a LoRA rank too")
        if self.qat is not None:
            object.__setattr__(self, "qat", _trainable(self.qat, "training without qat"))
            if self.lora is not None:
                raise ConfigError(
                    "qat trains all weights and cannot be combined with LoRA; omit LoRA, or use "
                    "qlora to train adapters on a quantized base"
                )
        if min(self.split) < 0 or not math.isclose(sum(self.split), 1):
            raise ConfigError(f"split must be three parts that add up to 1, not {self.split}")

    def training_config(self, n_records: int, changes: dict[str, Any]) -> TrainingConfig:
        """The steps' settings for this many training records, with single fields changed."""
        rate = LORA_LEARNING_RATE if self.lora else LEARNING_RATE
        given = {name: value for name, value in changes.items() if value is not None}
        rate = given.get("learning_rate", rate)
        batch_size = given.get("batch_size", 8)
        if batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, not {batch_size}")
        steps = max(1, math.ceil(self.epochs * n_records / batch_size))
        defaults: dict[str, Any] = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": rate,
            # Training for blocks ends at 0, where weights jump between two levels no more.
            "min_learning_rate": 0.0 if self.qat else rate / 10,
            "warmup_steps": min(20, steps // 10),
            "weight_decay": 0.0 if self.lora else 0.1,
            # The evaluations of an epoch cost about as much as one; two show a curve.
            "eval_interval": max(1, math.ceil(n_records / batch_size / 2)),
        }
        return validated(TrainingConfig, {**defaults, **given}, "training")


def seed_of(training: dict[str, Any] | None) -> int:
    """The seed among changed fields of TrainingConfig, or its default. Raises ConfigError."""
    seed = (training or {}).get("seed")
    fields = {} if seed is None else {"seed": seed}
    return validated(TrainingConfig, fields, "training").seed


def _trainable(name: str, instead: str) -> str:
    """The quantization's own name: q4_0 of int4. Raises ConfigError if none can train for it."""
    chosen = quantization(name)
    if chosen.base.needs_importance:
        raise ConfigError(f"{chosen.name} needs an importance matrix; choose another type")
    if chosen.base.block_size == 1:
        raise ConfigError(
            f"{chosen.name} is not quantized; choose a quantized type such as q4_0, or {instead}"
        )
    return chosen.name
