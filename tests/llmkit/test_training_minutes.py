"""Runs of so many minutes, and dry runs."""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import MODEL, StopError, outcome, run

from llmkit.architectures.registry import model_config, model_without_weights
from llmkit.cli.main import main
from llmkit.errors import CheckpointError, ConfigError, LlmkitError
from llmkit.tokenizer_training import train_kind
from llmkit.training import dry_run, loop, pace
from llmkit.training import run as run_module
from llmkit.training.config import TrainingConfig
from llmkit.training.loop import TrainingLoop
from llmkit.training.options import resolved
from llmkit.training.pace import START_AND_END_S, evaluation_seconds, planned_steps

MINUTES: dict[str, Any] = {"steps": None}
STEP_S, EVALUATION_S = 2.5, 2.0


class Clock:
    """Time passes in steps and evaluations alone, in the first step five times as much."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slower: tuple[int, float] = (1, 1.0)  # from which step, and how much

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, step, save = Clock(), TrainingLoop.step, TrainingLoop._evaluate_and_save

    def timed_step(self: TrainingLoop, number: int) -> Any:
        begin, factor = clock.slower
        clock.now += STEP_S * (5 if number == 0 else factor if number >= begin else 1)
        return step(self, number)

    def timed_save(self: TrainingLoop, *args: Any) -> Any:
        clock.now += EVALUATION_S
        return save(self, *args)

    monkeypatch.setattr(TrainingLoop, "step", timed_step)
    monkeypatch.setattr(TrainingLoop, "_evaluate_and_save", timed_save)
    for module in (loop, pace, run_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def of_minutes(data: Path, out: Path, *, minutes: float | None = 1.0, resume: bool = False) -> None:
    run(data, out, training=MINUTES, minutes=minutes, dropout=0.2, resume=resume)


def settings(out: Path) -> dict[str, Any]:
    state = json.loads((out / "training" / "state.json").read_text())
    found: dict[str, Any] = state["settings"]["training"]
    return found


@pytest.mark.parametrize("slower", [(1, 1.0), (10, 1.12), (10, 0.8), (40, 1.12)])
def test_run_of_minutes_ends_within_them(
    short_text: Path, tmp_path: Path, clock: Clock, slower: tuple[int, float]
) -> None:
    clock.slower, started = slower, clock.now
    clock.now += 20  # the start of the program
    training = {**MINUTES, "eval_interval": 25}
    result = run(short_text, tmp_path, training=training, minutes=5.0, started=started)
    assert 0.94 * 300 < clock.now - started < 300 - START_AND_END_S
    assert result.steps == settings(tmp_path)["steps"]


def test_run_of_minutes_is_the_run_with_the_planned_steps(
    short_text: Path, tmp_path: Path, clock: Clock
) -> None:
    clock.slower = (5, 0.9)
    of_minutes(short_text, tmp_path / "minutes")
    planned = settings(tmp_path / "minutes")
    training = {name: planned[name] for name in ("steps", "schedule", "decay_share")}
    run(short_text, tmp_path / "steps", training=training, dropout=0.2)
    found, expected = (outcome(tmp_path / name) for name in ("minutes", "steps"))
    assert [line["step"] for line in found["metrics"]] == [4, 8, 12, 15]
    assert found["metrics"] == expected["metrics"]
    assert found["files"]["model.safetensors"] == expected["files"]["model.safetensors"]


@pytest.mark.parametrize(
    ("stop", "error"), [(2, None), (9, None), (10, StopError), (11, StopError), (12, None)]
)
def test_stopped_run_of_minutes_resumes_exactly(
    short_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    stop: int,
    error: type[StopError] | None,
) -> None:
    original = TrainingLoop.step

    def interrupted(self: TrainingLoop, number: int) -> Any:
        if number == stop and error is not None:
            raise error
        if number == stop:
            signal.raise_signal(signal.SIGINT)
        return original(self, number)

    whole, out = tmp_path / "whole", tmp_path / "out"
    of_minutes(short_text, whole)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", interrupted)
        with pytest.raises(error or KeyboardInterrupt):
            of_minutes(short_text, out)
    if stop > 9:  # the plan that was made stays, however fast the machine is now
        clock.slower = (0, 0.1)
    with pytest.raises(CheckpointError, match=r"minutes was 1\.0, now 2\.0"):
        of_minutes(short_text, out, minutes=2.0, resume=True)
    with pytest.raises(CheckpointError, match=r"minutes was 1\.0, now None"):
        run(short_text, out, training={**MINUTES, "steps": 17}, dropout=0.2, resume=True)
    of_minutes(short_text, out, minutes=None, resume=True)  # it need not be said again
    assert outcome(out) == outcome(whole)


def test_diverged_run_of_minutes_keeps_its_plan(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    original = TrainingLoop.step

    def step(self: TrainingLoop, number: int) -> torch.Tensor:
        loss = original(self, number)
        if number == 13 and not self.state.diverged:
            clock.slower = (0, 0.1)
            return loss + math.nan
        return loss

    monkeypatch.setattr(TrainingLoop, "step", step)
    training = {**MINUTES, "eval_interval": 32}
    run(short_text, tmp_path, training=training, minutes=1.0)
    state = json.loads((tmp_path / "training" / "state.json").read_text())
    assert state["diverged"]
    assert state["step"] == 17


def test_steps_and_evaluations_fit_into_the_time() -> None:
    config = TrainingConfig(eval_interval=10, eval_tokens=4000)
    # An evaluation reads as many tokens as 4 steps, forward alone: 2 steps' time.
    assert evaluation_seconds(config, 0.5, 1000) == 1.0
    assert planned_steps(config, 0.5, 1.0, 18.1) == 30  # and evaluations at 10, 20 and 30
    assert planned_steps(config, 0.5, 1.0, 19.4) == 30  # one more would need another evaluation
    assert planned_steps(config, 0.5, 1.0, 19.6) == 31
    assert planned_steps(config, 0.5, 1.0, 5.1, done=28) == 6  # evaluations at 30 and 34
    assert planned_steps(config, 0.5, 1.0, -5.0) == 0


@pytest.mark.parametrize(
    ("training", "minutes", "words"),
    [
        ({"steps": 5}, 1.0, "minutes and steps"),
        ({"schedule": "cosine"}, 1.0, "schedule .* cosine"),
        ({}, 0.0, "minutes"),
    ],
)
def test_minutes_that_do_not_fit_are_refused(
    short_text: Path, tmp_path: Path, training: dict[str, Any], minutes: float, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run(short_text, tmp_path, training={**MINUTES, **training}, minutes=minutes)


def test_dry_run_tells_what_a_run_would_need(short_text: Path) -> None:
    training = {"steps": 30, "batch_size": 8, "micro_batch": 3}
    found = dry_run(short_text, model=MODEL, vocab_size=300, training=training, device="cpu")
    sizes = model_config("nano", 300, **MODEL)
    n = model_without_weights(sizes).n_parameters()
    assert found.n_parameters == n
    assert found.tokens_per_step == 8 * 16
    assert found.flops_per_step == 8 * 16 * (6 * n + 12 * 1 * 32 * 16)
    assert found.total_s == pytest.approx(30 * found.step_s)
    assert found.timed_steps == 10
    assert 0 < found.peak_share < 1
    assert "q8_0 instead of q6_k" in found.quantization


def test_dry_run_counts_the_optimizer_once(
    short_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {1: (3.0, 5), 2: (5.0, 5)}
    module = sys.modules["llmkit.training.dry_run"]
    monkeypatch.setattr(module, "_timed", lambda *arguments: times[arguments[-1]])
    training = {"steps": 30, "batch_size": 8, "micro_batch": 3}
    found = dry_run(short_text, model=MODEL, vocab_size=300, training=training, device="cpu")
    assert (found.step_s, found.timed_steps) == (3 + 2 * 2, 10)


def test_dry_run_counts_the_vocabulary_of_a_given_tokenizer(
    short_text: Path, tmp_path: Path
) -> None:
    train_kind("bpe", ["the cat sat"], 260).save(tmp_path / "tokenizer.json")
    options: dict[str, Any] = {"model": MODEL, "training": {"batch_size": 1}, "device": "cpu"}
    found = dry_run(short_text, tokenizer=str(tmp_path / "tokenizer.json"), **options)
    sizes = model_config("nano", 260, **MODEL)
    assert found.n_parameters == model_without_weights(sizes).n_parameters()
    (tmp_path / "char.txt").write_text("aäö" * 20, encoding="utf-8")
    found = dry_run(tmp_path / "char.txt", tokenizer="char", **options)
    sizes = model_config("nano", 256 + 2 + 1, **MODEL)
    assert found.n_parameters == model_without_weights(sizes).n_parameters()
    with pytest.raises(LlmkitError, match="nowhere"):
        dry_run(tmp_path / "nowhere.txt", **options)


def test_dry_run_tells_the_size_before_the_first_step(
    short_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(self: TrainingLoop, number: int) -> Any:
        raise StopError

    monkeypatch.setattr(TrainingLoop, "step", step)
    with pytest.raises(StopError):
        dry_run(short_text, model=MODEL, vocab_size=300, device="cpu")
    assert "22,880 parameters" in capsys.readouterr().err


def test_dry_run_writes_nothing(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = f"train --data {short_text} --out {out} --dry-run --json --n-layer 1 --batch-size 1"
    assert main(words.split()) == 0
    assert json.loads(capsys.readouterr().out)["timed_steps"] == 10
    assert not out.exists()


def test_minutes_alone_set_depth_dropout_and_vocabulary(tmp_path: Path) -> None:
    def sizes(minutes: float, device: str = "cpu", **options: Any) -> tuple[int, float]:
        config = resolved(text, minutes=minutes, device=torch.device(device), **options)[1]
        is_small = config.vocab_size == 1024
        assert is_small is (config.dropout == 0.1 and not options.keys() - {"model"})
        return config.n_layer, config.dropout

    text = tmp_path / "text.txt"
    text.write_bytes(b"a word " * 150_000)
    assert [sizes(minutes) for minutes in (1, 5, 20)] == [(1, 0.0), (2, 0.1), (4, 0.1)]
    assert sizes(5, "cuda")[0] > 4
    assert sizes(5, preset="nano") == (4, 0.0)
    assert sizes(5, depth=3) == (3, 0.0)
    assert sizes(5, model={"n_layer": 1}) == (1, 0.0)
    assert sizes(5, vocab_size=3000) == (2, 0.1)
    assert sizes(5, tokenizer="word") == (2, 0.1)
    for minutes, warmup_steps in ((1, 10), (5, 50), (100, 700)):
        large = resolved(text, minutes=minutes, preset="gpt2", device=torch.device("cpu"))[2]
        assert large.warmup_steps == warmup_steps
    often = resolved(
        text, minutes=5, device=torch.device("cpu"), model={"dropout": 0.3, "vocab_size": 700}
    )[1]
    assert (often.dropout, often.vocab_size) == (0.3, 700)
    text.write_bytes(b"a word " * 1_500_000)
    assert sizes(5) == (2, 0.0)
