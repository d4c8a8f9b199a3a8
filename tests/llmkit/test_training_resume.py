from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import (
    StopError,
    before_step,
    killed_at,
    killed_states,
    metrics,
    outcome,
    run,
    run_in_process,
    snapshot,
    stop_at,
)

from llmkit.errors import CheckpointError, LlmkitError
from llmkit.training.loop import interrupts_deferred
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_lock import is_locked


def step_reached(out: Path) -> int:
    """The step that is committed; -1 where none is."""
    state = out / "training" / "state.json"
    return int(json.loads(state.read_text(encoding="utf-8"))["step"]) if state.exists() else -1


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


def test_other_signals_save_too_and_their_handler_learns_of_it(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[float], dict[str, Any]],
) -> None:
    out, told = tmp_path / "out", []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with monkeypatch.context() as patch:
            before_step(patch, lambda number: number == 6 and signal.raise_signal(signal.SIGTERM))
            with pytest.raises(KeyboardInterrupt):
                run(short_text, out)
        assert told == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup leaves SIGHUP
        with interrupts_deferred(["SIGTERM"]) as interrupted:
            signal.raise_signal(signal.SIGTERM)
        assert not interrupted.is_set()
        signal.signal(signal.SIGTERM, before)
        hangup = signal.signal(signal.SIGHUP, lambda *_: None)
        with interrupts_deferred(["SIGHUP"]) as interrupted:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # as bash does where a terminal closes
        assert interrupted.is_set()
        signal.signal(signal.SIGHUP, hangup)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert step_reached(out) == 7
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


@pytest.mark.parametrize("exists", [True, False])
def test_resume_of_nothing_starts(short_text: Path, tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    run(short_text, out, resume=True)
    assert [line["step"] for line in metrics(out)] == [4, 8, 12]
