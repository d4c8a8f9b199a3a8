from __future__ import annotations

import errno
import json
import math
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    killed_at,
    killed_states,
    metrics,
    outcome,
    run,
    run_in_process,
    snapshot,
)

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import CheckpointError, LlmkitError
from llmkit.training import losses as losses_module
from llmkit.training.config import PRESET_TRAINING
from llmkit.training.evaluate import validation_loss
from llmkit.training.loop import TrainingLoop
from llmkit.training.losses import DivergedError, Losses
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_lock import is_locked
from llmkit.training.run_state import RunState
from llmkit.training.task import Evaluation


class StopError(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def uninterrupted(
    short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], dict[str, Any]]:
    """What a run comes to that nothing stops, for a dropout."""
    outcomes: dict[float, dict[str, Any]] = {}

    def of(dropout: float) -> dict[str, Any]:
        if dropout not in outcomes:
            out = tmp_path_factory.mktemp("uninterrupted") / "out"
            run(short_text, out, dropout=dropout)
            outcomes[dropout] = outcome(out)
        return outcomes[dropout]

    return of


def step_reached(out: Path) -> int:
    """The step that is committed; -1 where none is."""
    state = out / "training" / "state.json"
    return int(json.loads(state.read_text(encoding="utf-8"))["step"]) if state.exists() else -1


def before_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], call: str = "step"
) -> None:
    original = getattr(TrainingLoop, call)

    def step(self: TrainingLoop, number: int, *rest: Any) -> Any:
        act(number)
        return original(self, number, *rest)

    monkeypatch.setattr(TrainingLoop, call, step)


def stop_at(stops: int, error: type[BaseException] = StopError) -> Callable[[int], None]:
    def act(number: int) -> None:
        if number == stops:
            raise error

    return act


def test_two_runs_are_the_same_and_dropout_makes_another(
    short_text: Path, tmp_path: Path, uninterrupted: Callable[[float], dict[str, Any]]
) -> None:
    torch.rand(5)  # what the process drew before is no part of a run
    run(short_text, tmp_path / "out", dropout=0.2)
    assert outcome(tmp_path / "out") == uninterrupted(0.2)
    assert uninterrupted(0.2)["metrics"] != uninterrupted(0.0)["metrics"]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("step", [0, 1, 4, 6, 11])
def test_run_stopped_by_an_error_resumes_exactly(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[float], dict[str, Any]],
    dropout: float,
    step: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        before_step(patch, stop_at(step))
        with pytest.raises(StopError):
            run(short_text, out, dropout=dropout)
    run(short_text, out, dropout=dropout, resume=True)
    assert outcome(out) == uninterrupted(dropout)


@pytest.mark.parametrize("step", [4, 8, 12])
def test_run_stopped_in_an_evaluation_resumes_exactly(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[float], dict[str, Any]],
    step: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        before_step(patch, stop_at(step), "_evaluate_and_save")
        with pytest.raises(StopError):
            run(short_text, out)
    with (out / "training" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "tok')  # as a kill while writing leaves it
    run(short_text, out, resume=True)
    assert outcome(out) == uninterrupted(0.0)


@pytest.mark.parametrize("step", [0, 3, 5, 11])
def test_ctrl_c_saves_the_step_and_resumes_exactly(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: Callable[[float], dict[str, Any]],
    step: int,
) -> None:
    out = tmp_path / "out"
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(number: int) -> None:
        if number == step:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        before_step(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(short_text, out, dropout=0.2)
    assert signal.getsignal(signal.SIGINT) is handler
    assert re.search(rf"\bstopped\b.* step {step + 1}\b.*--resume", capsys.readouterr().err)
    assert step_reached(out) == step + 1
    run(short_text, out, dropout=0.2, resume=True)
    assert outcome(out) == uninterrupted(0.2)


def test_second_ctrl_c_stops_at_once_and_resumes_exactly(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[float], dict[str, Any]],
) -> None:
    out = tmp_path / "out"

    def interrupt(number: int) -> None:
        if number == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        before_step(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(short_text, out)
    assert step_reached(out) == 4
    run(short_text, out, resume=True)
    assert outcome(out) == uninterrupted(0.0)


def test_run_works_outside_the_main_thread(
    short_text: Path, tmp_path: Path, uninterrupted: Callable[[float], dict[str, Any]]
) -> None:
    thread = threading.Thread(target=run, args=(short_text, tmp_path / "out"))
    thread.start()
    thread.join()
    assert outcome(tmp_path / "out") == uninterrupted(0.0)


@pytest.mark.slow
def test_run_killed_at_any_file_operation_resumes_exactly(short_text: Path, tmp_path: Path) -> None:
    training = {"steps": 2, "eval_interval": 1}
    out = tmp_path / "out"

    def begin_or_resume() -> None:
        run(short_text, out, training=training, resume=True)

    states = killed_states(begin_or_resume, out, tmp_path / "states")
    assert len(states) > 30
    expected = outcome(out)
    for number, state in enumerate(states):
        shutil.rmtree(out)
        shutil.copytree(state, out)
        if number % 3 == 0:
            killed_at(number * 7 % 50 + 1, begin_or_resume)  # and while it recovers
        begin_or_resume()
        assert outcome(out) == expected, f"killed in state {number}"


@pytest.mark.slow
def test_run_killed_many_times_resumes_exactly(
    short_text: Path, tmp_path: Path, processes: Any
) -> None:
    steps = 200
    run_in_process(short_text, tmp_path / "whole", steps)
    out = tmp_path / "out"
    random.seed(0)
    n_killed = 0
    for _ in range(12):
        before = step_reached(out)
        child = processes.Process(target=run_in_process, args=(short_text, out, steps))
        child.start()
        while child.is_alive() and step_reached(out) == before:
            time.sleep(0.002)
        child.join(random.uniform(0, 0.05))
        child.kill()
        child.join()
        n_killed += child.exitcode == -signal.SIGKILL
    assert n_killed  # how often is a matter of the machine's speed
    run_in_process(short_text, out, steps)
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_of_a_process_saves_and_resumes_exactly(
    short_text: Path, tmp_path: Path, processes: Any
) -> None:
    steps = 200
    run_in_process(short_text, tmp_path / "whole", steps)
    out = tmp_path / "out"
    child = processes.Process(target=run_in_process, args=(short_text, out, steps))
    child.start()
    while child.is_alive() and step_reached(out) < 1:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 130
    assert 0 < step_reached(out) < steps
    run_in_process(short_text, out, steps)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_finished_run_is_left_alone(short_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(short_text, out)
    before = snapshot(out)
    for resume in (True, False):
        assert run(short_text, out, resume=resume) == first
        assert snapshot(out) == before


def test_unfinished_run_needs_resume(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        before_step(patch, stop_at(5))
        with pytest.raises(StopError):
            run(short_text, out)
    before = snapshot(out)
    with pytest.raises(CheckpointError, match="stopped at step 4; add --resume"):
        run(short_text, out)
    assert snapshot(out) == before


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


def test_two_processes_cannot_train_in_one_folder(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def start_another(number: int) -> None:
        if number == 5:
            with pytest.raises(CheckpointError, match="another process"):
                run(short_text, out, resume=True)

    before_step(monkeypatch, start_another)
    run(short_text, out)
    assert step_reached(out) == 12
    assert not is_locked(RunFolder(out))


def test_full_disk_keeps_the_checkpoint_before(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[float], dict[str, Any]],
) -> None:
    out = tmp_path / "out"

    original, half = os.fsync, out / "training" / "next" / "model.safetensors"

    def full(descriptor: int) -> None:
        if half.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        before_step(patch, lambda step: patch.setattr(os, "fsync", full) if step == 6 else None)
        with pytest.raises(LlmkitError, match=r"cannot write .*space.* step 4\b.*--resume"):
            run(short_text, out)
    assert not (out / "training" / "next").exists()
    run(short_text, out, resume=True)
    assert outcome(out) == uninterrupted(0.0)


def test_damaged_metrics_are_refused(short_text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(short_text, out)
    (out / "training" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged"):
        run(short_text, out)


@pytest.mark.parametrize("exists", [True, False])
def test_resume_of_nothing_starts(short_text: Path, tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    run(short_text, out, resume=True)
    assert [line["step"] for line in metrics(out)] == [4, 8, 12]
