"""Settings of a training run, each default with its reason."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from llmkit.architectures.registry import family_with, sizes_of
from llmkit.errors import ConfigError, unknown_name, wrong_field
from llmkit.files import cannot_read
from llmkit.validation import validated

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TrainingConfig:
    """How a model is trained. With the data and the sizes it determines every number of a run."""

    steps: Count = 500
    batch_size: Count = 16  # with context 256: 4096 tokens a step, half a second on two cores
    # Sequences in memory at a time, in pretraining; gradients add up. 0: the largest that fits.
    micro_batch: Annotated[int, Field(ge=0)] = 16
    activation_checkpointing: bool = False  # recompute blocks in backward: less memory, more time
    compile: bool = False  # blocks and loss by torch.compile
    learning_rate: Positive = 1e-3  # small models take more than GPT-2's 6e-4
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-4  # a tenth, as in Chinchilla and nanoGPT
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["cosine", "wsd"] = "cosine"  # wsd: warm-up, stable, decay
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.3  # of wsd: docs/training.md
    weight_decay: Annotated[float, Field(ge=0)] = 0.1  # GPT-3's; on matrices only
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95  # of muon, as Jordan et al. 2024 have it
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99  # below 0.999: short runs see few steps
    grad_clip: Positive = 1.0
    eval_interval: Count = 100  # also the interval of checkpoints
    keep_checkpoints: Count = 2  # of evaluations, to go back to; the best is kept besides
    eval_tokens: Count = 32768  # validation tokens of an evaluation: a few seconds on a CPU
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1337

    def __post_init__(self) -> None:
        if self.min_learning_rate > self.learning_rate:
            raise ConfigError(
                f"min_learning_rate {self.min_learning_rate} must not exceed learning_rate "
                f"{self.learning_rate}"
            )

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then down to min_learning_rate at the last step.

        `cosine` falls all the way; `wsd` stays at the peak and falls in a line at the end.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        last, is_wsd = self.steps - 1, self.schedule == "wsd"
        decay_steps = round(self.decay_share * self.steps) if is_wsd else last
        begin = max(self.warmup_steps, last - decay_steps)
        progress = min(max(step - begin, 0) / max(last - begin, 1), 1.0)
        share = 1 - progress if is_wsd else 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_learning_rate + share * (self.learning_rate - self.min_learning_rate)


def training_at_depth(depth: int) -> dict[str, Any]:
    """The settings that follow from the number of layers, by the study of docs/training.md.

    Muon learns more per step (docs/decisions.md). Its learning rate falls with the width's root,
    so that a step changes the outputs of a matrix equally far at every width.
    """
    rate = 6e-3 * (256 / sizes_of(depth)["n_embd"]) ** 0.5
    batch_size = 32 if depth == 1 else 16  # of 64 tokens a layer
    return {
        "batch_size": batch_size,
        "micro_batch": batch_size,
        "optimizer": "muon",
        "warmup_steps": 10,
        "learning_rate": rate,
        "min_learning_rate": rate / 10,
    }


# The large presets take GPT-2's and GPT-3's learning rates and batches.
PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "nano": training_at_depth(4),
    "micro": {**training_at_depth(6), "steps": 2000},
    **{
        preset: {
            "learning_rate": learning_rate,
            "min_learning_rate": learning_rate / 10,
            "batch_size": 512,  # half a million tokens, as these learning rates are for
            "micro_batch": 8,
            "beta2": 0.95,
            "warmup_steps": 700,
            "steps": 20000,
            "eval_interval": 500,
        }
        for preset, learning_rate in {
            "gpt2": 6e-4,
            "gpt2-medium": 3e-4,
            "gpt2-large": 2.5e-4,
            "gpt2-xl": 2e-4,
        }.items()
    },
}


def preset_or_depth(preset: str | None, depth: int | None) -> str | int:
    """The one that was given, or the default. Raises ConfigError for both."""
    if preset is not None and depth is not None:
        raise ConfigError("preset and depth both set the sizes; give one of them")
    return preset or "nano" if depth is None else depth


def training_config(preset: str | int, /, **changes: Any) -> TrainingConfig:
    """Settings of a preset or a depth with single fields changed by name; None leaves a field.

    A learning rate given alone brings its own minimum, a tenth of it. The warm-up takes at most a
    tenth of the steps, or ten steps, unless it is given.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    rate = given.get("learning_rate")
    if isinstance(rate, int | float):  # anything else is refused below
        given.setdefault("min_learning_rate", rate / 10)
    known = (
        training_at_depth(preset) if isinstance(preset, int) else PRESET_TRAINING.get(preset, {})
    )
    config = validated(TrainingConfig, {**known, **given}, "training")
    return config if "warmup_steps" in given else with_warmup_in(config.steps, config)


def with_warmup_in(n_steps: int, config: TrainingConfig) -> TrainingConfig:
    """The settings with a warm-up that is short for a run of so many steps."""
    return replace(config, warmup_steps=min(config.warmup_steps, max(n_steps // 10, 10)))


def load_run_config(path: Path, preset: str | int) -> dict[str, dict[str, Any]]:
    """Read the `[model]` and `[training]` tables of a TOML file that change fields of `preset`.

    Raises ConfigError, which names the file, where it cannot be read or has another table, another
    setting or a value that its setting cannot have.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(cannot_read(path, error)) from error
    known = family_with(preset)
    kinds: dict[str, tuple[type, Mapping[str, Any]]] = {
        "model": (known.config, {**sizes_of(preset), "vocab_size": 1}),
        "training": (TrainingConfig, {}),
    }
    for name, table in tables.items():
        if name not in kinds:
            raise ConfigError(f"{path}: {unknown_name('table', name, kinds)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is not a table; write [{name}] above its fields")
        kind, others = kinds[name]
        try:
            kind(**{**others, **table})
        except ValidationError as error:
            names = [field.name for field in fields(kind)]
            raise ConfigError(f"{path}, [{name}]: {wrong_field(error, names)}") from error
        except ConfigError:
            pass  # fields that do not go together: options may change one of them
    return tables
