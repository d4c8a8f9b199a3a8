"""`--micro-batch auto` and `--compile`: what is found, what is kept, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from training_runs import run

from llmkit.architectures.registry import model_config
from llmkit.errors import ConfigError
from llmkit.training import micro_batch
from llmkit.training import run as training_run
from llmkit.training.config import TrainingConfig
from llmkit.training.micro_batch import with_micro_batch

SIZES = model_config("nano", 50, n_layer=1, n_head=1, n_embd=8, context_length=4)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("MPS backend out of memory")]
)
@pytest.mark.parametrize(("batch_size", "most", "wanted"), [(64, 21, 16), (12, 99, 12), (8, 8, 8)])
def test_steps_double_until_memory_of_the_gpu_is_exhausted(
    monkeypatch: pytest.MonkeyPatch, error: Exception, batch_size: int, most: int, wanted: int
) -> None:
    tried = []

    class FakeLoop:
        def __init__(self, *arguments: Any) -> None:
            self.n = arguments[2].micro_batch
            tried.append(self.n)

        def step(self, step: int) -> float:
            if step == 1 and self.n > most:  # the first has no optimizer states
                raise error
            return 0.0

    monkeypatch.setattr(micro_batch, "TrainingLoop", FakeLoop)
    config = TrainingConfig(batch_size=batch_size, micro_batch=0)
    assert with_micro_batch(config, SIZES, torch.device("cuda")).micro_batch == wanted
    assert tried[:4] == [1, 2, 4, 8]
    given = TrainingConfig(batch_size=batch_size, micro_batch=3)
    assert with_micro_batch(given, SIZES, torch.device("cuda")) == given


def test_two_small_steps_tell_what_fits_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([1000, 1010])
    monkeypatch.setattr(micro_batch, "peak_rss_bytes", lambda: next(peaks))
    free = SimpleNamespace(available=2 * 40 * 10)  # half of it: 40 sequences more than the two
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    config = TrainingConfig(batch_size=100, micro_batch=0)
    assert with_micro_batch(config, SIZES, torch.device("cpu")).micro_batch == 32


def test_micro_batch_that_was_found_stays(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, training = tmp_path / "out", {"micro_batch": 0}
    run(short_text, out, training=training)
    state = json.loads((out / "training" / "state.json").read_text(encoding="utf-8"))
    assert state["settings"]["training"]["micro_batch"] == 4  # the batch
    monkeypatch.setattr(micro_batch, "_two_steps", None)
    assert run(short_text, out, training=training, resume=True).steps == 12


def test_micro_batch_is_found_with_the_vocabulary_of_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def with_one(config: TrainingConfig, sizes: Any, device: torch.device) -> TrainingConfig:
        found.append(sizes.vocab_size)
        return replace(config, micro_batch=1)

    monkeypatch.setattr(training_run, "with_micro_batch", with_one)
    text = tmp_path / "text.txt"
    text.write_text("aäö" * 300, encoding="utf-8")
    run(text, tmp_path / "out", tokenizer="char", training={"micro_batch": 0})
    assert found == [256 + 2 + 1]


def test_compile_is_refused_without_a_compiler(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        run(short_text, tmp_path / "out", training={"compile": True})
    assert not (tmp_path / "out").exists()


def test_compile_compiles_blocks_and_loss(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = set()
    monkeypatch.setattr(training_run, "refuse_compile", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.add(f.__name__) or f)
    run(short_text, tmp_path / "out", training={"compile": True})
    assert compiled == {"transform", "_loss_and_gradient"}
