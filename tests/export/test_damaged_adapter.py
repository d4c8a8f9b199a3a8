"""Damaged adapters: the right check fails and names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_surgery import Kind, with_key, with_tensor, with_tensors, without_key
from verify_targets import (
    complaints,
    lora_checkpoint,
    proof_of,
    rewritten,
    said,
    write,
    write_apart,
)

from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check


def test_an_adapter_that_is_not_merged_is_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path, "q8_0")
    alone = without_key(path, tmp_path / "alone.gguf", "llmkit.adapter")
    found = tensors_check(open_target(checkpoint, alone))
    assert found.value == 8
    assert found.detail.startswith("the adapter is missing")


def test_an_adapter_that_would_be_added_twice_is_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    write_apart(checkpoint, tmp_path)
    merged = write(checkpoint, tmp_path / "merged.gguf")
    value = "adapter.gguf"
    twice = with_key(merged, tmp_path / "twice.gguf", "llmkit.adapter", value, Kind.STRING)
    found = tensors_check(open_target(checkpoint, twice))
    assert found.value == 8
    assert found.detail.startswith("the adapter is applied twice")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d * 1.01, " (4, 64): 4 of 4 rows differ"),
        (lambda d: d * 3, " (4, 64): 4 of 4 rows differ"),
        (lambda d: d[[1, 0, 2, 3]], " (4, 64): 2 of 4 rows differ, first row 0;"),
        (lambda d: d * 0, " (4, 64): 4 of 4 rows differ"),
        (lambda d: d[:2], " has shape (2, 64) instead of (4, 64)"),
    ],
)
def test_wrong_adapter_matrices_are_named(
    change: Callable[[Any], Any], expected: str, tmp_path: Path
) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    good = (tmp_path / "adapter.gguf").rename(tmp_path / "good.gguf")
    name = "blk.1.ffn_up.weight.lora_a"
    with_tensor(good, tmp_path / "adapter.gguf", name, change)
    found = tensors_check(open_target(checkpoint, path))
    assert found.value == 1
    assert found.detail.startswith(f"adapter.gguf: {name}{expected}")


def test_missing_and_left_over_adapter_matrices_are_named(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    good = (tmp_path / "adapter.gguf").rename(tmp_path / "good.gguf")
    name = "blk.1.ffn_up.weight.lora_a"

    def rename(tensors: dict[str, Any]) -> None:
        tensors[name.replace("blk.1", "blk.7")] = tensors.pop(name)

    with_tensors(good, tmp_path / "adapter.gguf", rename)
    found = tensors_check(open_target(checkpoint, path))
    assert found.value == 2
    assert f"missing: {name}" in found.detail
    assert "not in the checkpoint: blk.7.ffn_up.weight.lora_a" in found.detail


def test_another_alpha_is_caught(tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    path = write_apart(tuned, tmp_path)
    adapter = tmp_path / "adapter.gguf"
    with_key(adapter, tmp_path / "other.gguf", "adapter.lora.alpha", 3.0, Kind.FLOAT32)
    (tmp_path / "other.gguf").replace(adapter)
    target = open_target(tuned, path)
    failed = complaints(
        metadata=metadata_check(target), layers=layers_check(target, torch.arange(32))
    )
    assert "adapter.lora.alpha" in failed["metadata"]
    assert "blk.0.attn_qkv.weight" in failed["layers"]


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (None, "ADAPTER ./adapted-adapter.gguf"),
        ("./gone.gguf", "ADAPTER ./gone.gguf"),
        ("./other.gguf", "ADAPTER ./other.gguf must be adapted-adapter.gguf"),
    ],
)
def test_a_modelfile_that_does_not_use_the_adapter_is_caught(
    adapter: str | None, words: str, tmp_path: Path
) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    done = export(tuned.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False)
    assert done.adapter is not None
    name = "blk.0.attn_qkv.weight.lora_b"
    with_tensor(done.adapter.path, tmp_path / "out" / "other.gguf", name, lambda d: d * 2)
    rewritten(done.files[0].path, lambda modelfile: replace(modelfile, adapter=adapter))
    failed = said(proof_of(tuned, done.files[0].path))
    assert set(failed) == {"metadata"}
    assert words in failed["metadata"]
