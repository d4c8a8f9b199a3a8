"""Damaged checkpoints and diverging runs: what a run goes back to."""

from __future__ import annotations

import gc
import json
import math
import re
import signal
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    StopError,
    before_step,
    metrics,
    outcome,
    run,
    stop_at,
)

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import CheckpointError
from llmkit.training import losses as losses_module
from llmkit.training.config import PRESET_TRAINING
from llmkit.training.evaluate import validation_loss
from llmkit.training.loop import TrainingLoop
from llmkit.training.losses import DivergedError, Losses
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState
from llmkit.training.task import Evaluation

TENSOR_FILES = ("model.safetensors", "training/optimizer.safetensors")


def damage(file: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("steps", [10, 12])
@pytest.mark.parametrize("file", TENSOR_FILES)
def test_damaged_checkpoint_falls_back_to_the_one_before(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: Callable[[float], dict[str, Any]],
    file: str,
    steps: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        before_step(patch, stop_at(steps))
        with suppress(StopError):
            run(short_text, out)
    damage(out / file)
    before = 4 if steps == 10 else 8
    with pytest.raises(CheckpointError, match=rf"{re.escape(file)} .*--resume.* step {before}$"):
        run(short_text, out)
    run(short_text, out, resume=True)
    assert f"{file} is damaged" in capsys.readouterr().err
    assert outcome(out) == uninterrupted(0.0)


@pytest.mark.parametrize("file", TENSOR_FILES)
def test_run_with_no_undamaged_checkpoint_is_refused(
    short_text: Path, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "out"
    run(short_text, out)
    for place in (out, *(out / "training" / "saves").iterdir()):
        (place / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(file)} is damaged"):
        run(short_text, out, resume=True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 3}', '{"stop": 3}'])
def test_damaged_state_falls_back(
    short_text: Path,
    tmp_path: Path,
    content: str,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: Callable[[float], dict[str, Any]],
) -> None:
    out = tmp_path / "out"
    run(short_text, out)
    (out / "training" / "state.json").write_text(content, encoding="utf-8")
    run(short_text, out, resume=True)
    assert "state.json is damaged" in capsys.readouterr().err
    assert outcome(out) == uninterrupted(0.0)


def jump(step: int) -> float:
    """Added to the loss: a rise of two nats for good, at step 5 (counted from 1)."""
    return 2.0 * (step >= 4)


@pytest.mark.parametrize("stop", [2, 4, 5, None])
@pytest.mark.parametrize("rise", [lambda step: math.nan if step == 6 else 0.0, jump])
def test_diverged_run_goes_back_once_with_a_lower_rate(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rise: Callable[[int], float],
    stop: int | None,
) -> None:
    monkeypatch.setattr(losses_module, "SPIKE_STEPS", 2)
    original = TrainingLoop.step

    def step(self: TrainingLoop, number: int) -> torch.Tensor:
        loss = original(self, number)
        return loss if self.state.diverged else loss + rise(number)

    monkeypatch.setattr(TrainingLoop, "step", step)
    training = {"eval_interval": 2}
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(short_text, whole, training=training)
    assert capsys.readouterr().err.count("training diverged") == 1
    assert json.loads((whole / "training" / "state.json").read_text())["diverged"]
    assert [line["step"] for line in metrics(whole)] == [2, 4, 6, 8, 10, 12]
    assert metrics(whole)[-1]["lr"] == PRESET_TRAINING["nano"]["min_learning_rate"] / 2
    interrupted = iter([False] * (stop or 99) + [True])

    def interrupt(number: int) -> None:
        if next(interrupted, False):
            signal.raise_signal(signal.SIGINT)

    def die(self: RunFolder, step: int) -> None:
        raise StopError  # the step to go back to is committed

    with monkeypatch.context() as patch:
        before_step(patch, interrupt)
        if stop is None:
            patch.setattr(RunFolder, "_drop_after", die)
        with pytest.raises(KeyboardInterrupt if stop else StopError):
            run(short_text, out, training=training)
    run(short_text, out, training=training, resume=True)
    assert outcome(out) == outcome(whole)


def test_weights_that_are_no_numbers_at_an_evaluation_go_back(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An evaluation also draws samples, which such weights do not give."""
    original, loops = TrainingLoop.step, []

    def step(self: TrainingLoop, number: int) -> torch.Tensor:
        loss = original(self, number)
        if not self.state.diverged and number == 7:
            loops.append(weakref.ref(self))
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.nan)
        if self.state.diverged and len(loops) == 1:
            gc.collect()
            loops.append(loops[0])
            assert loops[0]() is None  # its model leaves the memory before the next one trains
        return loss

    monkeypatch.setattr(TrainingLoop, "step", step)
    run(short_text, tmp_path, resume=True)
    assert len(loops) == 2
    assert capsys.readouterr().err.count("training diverged") == 1
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8, 12]


def test_noisy_losses_are_no_spike() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 500)
    losses = Losses(RunState({}, {}), None)
    for value in noise:
        losses.add(torch.tensor(3.0 + value))
    assert len(losses.all()) == 500


def test_batches_of_short_and_long_records_are_no_spike() -> None:
    is_long = np.random.default_rng(0).random(1000) < 0.5
    losses = Losses(RunState({}, {}), 1.65)
    for value in np.where(is_long, 3.0, 0.3):
        losses.add(torch.tensor(value))
    assert len(losses.all()) == 1000
    for _ in range(10):
        losses._unread.append(torch.tensor(8.0))
    with pytest.raises(DivergedError):
        losses.all()


def test_best_checkpoint_is_kept(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    losses = iter([4.0, 2.0, 3.0, 3.5, 3.1, 3.2])
    original = Pretraining.evaluate

    def evaluate(self: Pretraining, model: LanguageModel) -> Evaluation:
        found = original(self, model)
        measured.append(found.val_loss)
        return replace(found, val_loss=next(losses))

    measured: list[float] = []
    monkeypatch.setattr(Pretraining, "evaluate", evaluate)
    run(short_text, out, training={"steps": 24})
    state = out / "training" / "best" / "training" / "state.json"
    assert json.loads(state.read_text())["step"] == 8
    assert sorted(path.name for path in (out / "training" / "saves").iterdir()) == ["20", "24"]
    task = load_checkpoint(out / "training" / "best")
    held_out = windows(open_token_file(task.validation_tokens_file, 300), 16, 64)
    assert validation_loss(task.load_model(), held_out, 4) == pytest.approx(measured[1])


def test_best_checkpoint_past_the_one_to_go_back_to_is_dropped(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    losses = iter([3.0, 4.0, 2.0, 2.0])
    original = Pretraining.evaluate

    def evaluate(self: Pretraining, model: LanguageModel) -> Evaluation:
        return replace(original(self, model), val_loss=next(losses))

    monkeypatch.setattr(Pretraining, "evaluate", evaluate)
    run(short_text, out)
    damage(out / "model.safetensors")  # one file with that of the best checkpoint
    run(short_text, out, resume=True)
    best = out / "training" / "best" / "model.safetensors"
    assert best.read_bytes() == (out / "model.safetensors").read_bytes()


def test_damaged_metrics_are_refused(short_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(short_text, out)
    (out / "training" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
        run(short_text, out)
