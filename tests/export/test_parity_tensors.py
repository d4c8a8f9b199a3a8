"""Good files of every kind pass `tensors`."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_surgery import make_checkpoint
from verify_targets import EVERY_TYPE, VARIANTS, lora_checkpoint, write_apart, written

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check


@pytest.mark.parametrize("qtype", ["f32", "f16", "q4_0"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_good_file_of_every_kind_of_model_passes(
    variant: str, qtype: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **VARIANTS[variant])
    found = tensors_check(written(checkpoint, tmp_path / "m.gguf", qtype))
    assert (found.passed, found.value, found.limit) == (True, 0, 0)
    assert found.detail.endswith("equal bit for bit")


@pytest.mark.parametrize("qtype", EVERY_TYPE)
def test_a_good_file_of_every_type_passes(
    qtype: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = tensors_check(written(random_checkpoint, tmp_path / "m.gguf", qtype))
    assert found.passed
    assert found.detail.startswith("28 tensors ")


@pytest.mark.parametrize("base_quant", [None, "q4_0"])
def test_an_adapter_passes_apart_and_merged(base_quant: str | None, tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c", base_quant=base_quant)
    apart = tensors_check(
        open_target(checkpoint, write_apart(checkpoint, tmp_path, base_quant or "f32"))
    )
    assert apart.passed
    assert apart.detail.startswith("44 tensors ")
    assert tensors_check(written(checkpoint, tmp_path / "m.gguf", "q8_0")).passed
