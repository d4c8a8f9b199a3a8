"""Checkpoints of every kind and good files of them, as the checks of `verify` are given them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetuned import with_adapter
from gguf_surgery import make_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.check import Outcome, Proof
from llmkit.export.gguf.adapter import write_adapter
from llmkit.export.gguf.writer import write_gguf
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.export.verify.verify import verify
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.prompt_format import prompt_format
from llmkit.modelfiles.reading import read_modelfile
from llmkit.quant import quant_names, quant_type
from llmkit.quantization.tensor_types import quantization
from llmkit.tokenizer_training import train_bpe, train_characters

# All that need no importances; ggml takes seconds to build the codebooks of two.
SLOW_TYPES = ("iq1_m", "iq2_s")
EVERY_TYPE = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW_TYPES else ())
    for name in quant_names()
    if not quant_type(name).needs_importance
]
VARIANTS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "untied": {"tie_embeddings": False},
    "no qkv bias": {"qkv_bias": False},
    "untied, no qkv bias": {"tie_embeddings": False, "qkv_bias": False},
    "odd width": {"n_embd": 48},
    "width of 2 blocks and odd heads": {"n_embd": 96, "n_head": 3},
    "one layer": {"n_layer": 1},
    "context 8": {"context_length": 8},
    "another eps": {"layer_norm_epsilon": 1e-6},
    "characters": {"tokenizer": train_characters(["abc äöü 中文字 😀 Привет"])},
    "bytes alone": {"tokenizer": train_characters(["abc"])},
}


def write(checkpoint: Checkpoint, path: Path, qtype: str = "f32") -> Path:
    """The checkpoint's file, merged if it has an adapter."""
    write_gguf(checkpoint, path, quantization(qtype), "model")
    return path


def written(
    checkpoint: Checkpoint, path: Path, qtype: str = "f32", *, of: Checkpoint | None = None
) -> VerifyTarget:
    """The file, to be held against its checkpoint or another one."""
    return open_target(of or checkpoint, write(checkpoint, path, qtype))


def chatml_checkpoint(folder: Path) -> Checkpoint:
    """With special tokens of a chat and another end than the end of text."""
    form = prompt_format("chatml")
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    tokenizer = tokenizer.with_tokens(special=[*form.special_tokens, form.end])
    checkpoint = make_checkpoint(folder, tokenizer=tokenizer)
    save_config(folder, CheckpointConfig(checkpoint.config, form))
    return load_checkpoint(folder)


def lora_checkpoint(folder: Path, *, base_quant: str | None = None, **sizes: Any) -> Checkpoint:
    """With an adapter in which no number is zero."""
    base = make_checkpoint(folder / "base", **sizes)
    return with_adapter(base, folder / "adapted", base_quant=base_quant, alpha=12.0)


def write_apart(checkpoint: Checkpoint, folder: Path, qtype: str = "f32") -> Path:
    """The base's file, and its adapter's beside it."""
    write_adapter(checkpoint, folder / "adapter.gguf", "model")
    path = folder / "model.gguf"
    write_gguf(checkpoint, path, quantization(qtype), "model", "adapter.gguf", merged=False)
    return path


def proof_of(checkpoint: Checkpoint, gguf: Path) -> Proof:
    """All checks on a short text."""
    return verify(checkpoint.folder, gguf, max_tokens=96)


def said(proof: Proof) -> dict[str, str]:
    """The detail of each failed check."""
    return {check.name: check.detail for check in proof.checks if not check.passed}


def complaints(**outcomes: Outcome) -> dict[str, str]:
    """The detail of each failed check, by the name under which it is given."""
    return {name: found.detail for name, found in outcomes.items() if not found.passed}


def rewritten(gguf: Path, change: Callable[[Modelfile], Modelfile]) -> None:
    path = gguf.parent / "Modelfile"
    path.write_text(render(change(read_modelfile(path).modelfile)), encoding="utf-8")
