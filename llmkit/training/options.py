"""What the options of `train` come to, for a run and for a dry run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import model_config
from llmkit.console import say
from llmkit.data.prepared import (
    DEFAULT_VOCAB_SIZE,
    Prepared,
    is_prepared,
    make_tokenizer,
    open_prepared,
    refuse_vocab_size,
)
from llmkit.data.sources import read_pieces
from llmkit.data.tokens import split_pieces
from llmkit.errors import ConfigError
from llmkit.quant import quant_names, quant_type
from llmkit.records.text_files import Reading
from llmkit.tokenizer_training import KINDS
from llmkit.training.config import (
    TrainingConfig,
    preset_or_depth,
    training_config,
    with_warmup_in,
)
from llmkit.training.depth import (
    DROPOUT,
    SMALL_VOCAB_SIZE,
    depth_for,
    flops_in,
    guessed_tokens,
    reads_often,
)
from llmkit.training.run_state import UNPLANNED

STEPS_PER_MINUTE = 100  # for the warm-up: how many there will be is not known yet


def resolved(
    data: Path,
    *,
    preset: str | None = None,
    depth: int | None = None,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    batch_tokens: int | None = None,
    minutes: float | None = None,
    device: torch.device,
) -> tuple[Prepared | None, ModelConfig, TrainingConfig]:
    """What the options of `train` come to: prepared data, sizes and settings."""
    size = preset_or_depth(preset, depth)
    given = {"n_layer", "n_head", "n_embd"} & set(model or {})
    if depth is not None and given:
        raise ConfigError(f"depth sets {', '.join(sorted(given))}; omit either")
    flops = None  # that alone set the size
    if minutes is not None and preset is None and depth is None and not given:
        flops = flops_in(minutes, device.type)
        size = depth_for(flops)
        say(f"depth {size}: learns most in about {minutes:g} min on this kind of device")
    changes = dict(model or {})
    if vocab_size is not None:
        refuse_vocab_size(tokenizer)
        changes["vocab_size"] = vocab_size
    prepared = open_prepared(data) if is_prepared(data) else None
    if prepared is not None:
        if tokenizer != "bpe" or "vocab_size" in changes:
            raise ConfigError(f"{data} is tokenized; omit tokenizer and vocab_size")
        changes["vocab_size"] = prepared.vocab_size
    sizes = model_config(size, **{"vocab_size": DEFAULT_VOCAB_SIZE, **changes})
    if flops is not None:
        n_tokens = prepared.total("train").tokens if prepared else guessed_tokens(data)
        if reads_often(flops, sizes, n_tokens):
            vocab_size = SMALL_VOCAB_SIZE if tokenizer == "bpe" else sizes.vocab_size
            often = {"vocab_size": vocab_size, "dropout": DROPOUT}
            sizes = model_config(size, **{**often, **changes})
    if batch_tokens is not None:
        if batch_tokens < 1:
            raise ConfigError(f"batch_tokens {batch_tokens}: expected at least 1")
        if (training or {}).get("batch_size") is not None:
            raise ConfigError("batch_tokens and batch_size say the same; give one of them")
        training = {**(training or {}), "batch_size": max(batch_tokens // sizes.context_length, 1)}
    if minutes is not None:
        if (training or {}).get("steps") is not None:
            raise ConfigError("minutes and steps say the same; give one of them")
        training = {"schedule": "wsd", **(training or {}), "steps": UNPLANNED}
    config = training_config(size, **(training or {}))
    if minutes is not None:
        if not (0 < minutes < math.inf and config.schedule == "wsd"):
            raise ConfigError(
                f"minutes must be above 0 and schedule wsd, not {minutes:g} and {config.schedule}"
            )
        if (training or {}).get("warmup_steps") is None:
            config = with_warmup_in(STEPS_PER_MINUTE * math.ceil(minutes), config)
    return prepared, sizes, config


def sized_for(data: Path, tokenizer: str, reading: Reading, sizes: ModelConfig) -> ModelConfig:
    """The sizes with the vocabulary that a tokenizer of this text has, where it is not trained."""
    if tokenizer in KINDS and tokenizer != "char":
        return sizes
    pieces = split_pieces(lambda: read_pieces([data], reading))
    return replace(sizes, vocab_size=make_tokenizer(tokenizer, pieces, 0).vocab_size)


def quantization_note(sizes: ModelConfig) -> str:
    """What exports store instead of types that do not fit n_embd, without the IQ and TQ types."""
    instead: dict[str, list[str]] = {}
    for name in (name for name in quant_names() if name.startswith("q")):
        stored = quant_type(name).fitting(sizes.n_embd).name
        if stored != name:
            instead.setdefault(stored, []).append(name)
    if not instead:
        return f"n_embd {sizes.n_embd}: every quantization type fits"
    pairs = [f"{stored} instead of {', '.join(names)}" for stored, names in instead.items()]
    return (
        f"n_embd {sizes.n_embd} does not fit every quantization type; "
        f"exports will use {'; '.join(pairs)}"
    )
