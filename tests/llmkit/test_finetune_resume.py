from __future__ import annotations

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_runs import KINDS, instruct, instruct_in_process, records, write_questions
from training_runs import Killed, killed_states, outcome, run, snapshot

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import CheckpointError
from llmkit.finetuning import start
from llmkit.finetuning.config import FinetuneConfig
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.training.loop import TrainingLoop


class StopError(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def uninterrupted(
    small_base: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What a run of a kind comes to that nothing stops."""
    outcomes: dict[str, dict[str, Any]] = {}

    def of(kind: str) -> dict[str, Any]:
        if kind not in outcomes:
            out = tmp_path_factory.mktemp("uninterrupted") / "out"
            instruct(small_base, questions, out, config=KINDS[kind])
            outcomes[kind] = outcome(out)
        return outcomes[kind]

    return of


def stopped(base: Path, data: Path, out: Path, kind: str, at: int, call: str = "step") -> None:
    """A run that ends before a step, or before an evaluation's end."""
    original = getattr(TrainingLoop, call)

    def step(self: TrainingLoop, number: int, *rest: Any) -> Any:
        if number == at:
            raise StopError
        return original(self, number, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, call, step)
        with pytest.raises(StopError):
            instruct(base, data, out, config=KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_run_stopped_by_an_error_resumes_exactly(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    uninterrupted: Callable[[str], dict[str, Any]],
    kind: str,
    step: int,
) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, kind, step)
    instruct(small_base, questions, out, config=KINDS[kind], resume=True)
    assert outcome(out) == uninterrupted(kind)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_run_stopped_in_its_last_evaluation_resumes_exactly(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    uninterrupted: Callable[[str], dict[str, Any]],
    kind: str,
) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, kind, 6, "_evaluate_and_save")
    instruct(small_base, questions, out, config=KINDS[kind], resume=True)
    assert outcome(out) == uninterrupted(kind)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_ctrl_c_saves_the_step_and_resumes_exactly(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
    kind: str,
) -> None:
    out = tmp_path / "out"
    original = TrainingLoop.step

    def step(self: TrainingLoop, number: int) -> float:
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", step)
        with pytest.raises(KeyboardInterrupt):
            instruct(small_base, questions, out, config=KINDS[kind])
    assert step_reached(out) == 4
    instruct(small_base, questions, out, config=KINDS[kind], resume=True)
    assert outcome(out) == uninterrupted(kind)


def test_finished_run_is_left_alone_and_says_the_same(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    for kind in ("full", "lora"):
        out = tmp_path / kind
        first = instruct(small_base, questions, out, config=KINDS[kind])
        before = snapshot(out)
        for resume in (True, False):
            again = instruct(small_base, questions, out, config=KINDS[kind], resume=resume)
            assert again == first
        assert snapshot(out) == before


# --- another run --------------------------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"training": {"steps": 7}}, r"\(training\.steps .*\b6\b.*\b7\)"),
    "seed": ({"training": {"seed": 5}}, r"\(training\.seed .*\b1337\b.*\b5\)"),
    "prompts": ({"mask_prompt": False}, r"\(mask_prompt .*\bTrue\b.*\bFalse\)"),
    "packing": ({"packing": True}, r"\(packing .*\bFalse\b.*\bTrue\)"),
    "format": (
        {"prompt_format": COMPLETION},
        r"\(prompt_format\.name .*\buser-assistant\b.*\bcompletion\b",
    ),
    "adapters": ({"config": KINDS["qlora"]}, r"\(finetune\.lora .*\bNone\b.*'rank': 2\b"),
    "split": (
        {"config": FinetuneConfig(split=(0.8, 0.1, 0.1))},
        r"\(finetune\.split .*\[0\.85, .*\[0\.8, ",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_refused_by_its_name(
    small_base: Path, questions: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, "full", 4)
    before = snapshot(out)
    changes, words = CHANGES[name]
    with pytest.raises(CheckpointError, match=words) as caught:
        instruct(small_base, questions, out, resume=True, **changes)
    assert "\n" not in str(caught.value)
    assert snapshot(out) == before


def test_other_records_are_refused(small_base: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, "full", 4)
    before = snapshot(out)
    content = records()
    content[0]["completion"] = "Elsewhere."
    other = write_questions(tmp_path / "other.jsonl", content)
    with pytest.raises(CheckpointError, match=r"\(.*\bdata\b.*\).*--out"):
        instruct(small_base, other, out, resume=True)
    assert snapshot(out) == before


def test_another_base_is_refused(
    small_base: Path, questions: Path, short_text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, "lora", 4)
    run(short_text, tmp_path / "base", model={"context_length": 64}, training={"seed": 3})
    with pytest.raises(CheckpointError, match=r"\(base .*\).*--out"):
        instruct(tmp_path / "base", questions, out, config=KINDS["lora"], resume=True)


def test_unfinished_run_needs_resume(small_base: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped(small_base, questions, out, "lora", 4)
    before = snapshot(out)
    with pytest.raises(CheckpointError, match="stopped at step 3; add --resume"):
        instruct(small_base, questions, out, config=KINDS["lora"])
    assert snapshot(out) == before


def test_folder_with_other_things_is_refused_and_left_alone(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(tmp_path))} .*\bempty\b.*--out"):
        instruct(small_base, questions, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("other", ["full", "lora"])
def test_folder_killed_before_the_first_commit_serves_any_run(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[str], dict[str, Any]],
    kind: str,
    other: str,
) -> None:
    out, killed = tmp_path / "out", tmp_path / "killed"

    def die(*_: object) -> None:
        shutil.copytree(out, killed)  # a kill leaves what an exception removes
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(start, "save_config", die)  # the last file but the state
        with pytest.raises(Killed):
            instruct(small_base, questions, out, config=KINDS[other])
    assert not out.exists()
    killed.rename(out)
    assert (out / "model.safetensors").exists()
    assert (out / "adapter_model.safetensors").exists() == (other == "lora")
    instruct(small_base, questions, out, config=KINDS[kind])
    assert load_checkpoint(out).lora == KINDS[kind].lora
    assert outcome(out) == uninterrupted(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_run_killed_at_any_file_operation_resumes_exactly(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    uninterrupted: Callable[[str], dict[str, Any]],
    kind: str,
) -> None:
    out = tmp_path / "out"

    def begin_or_resume() -> None:
        instruct(small_base, questions, out, config=KINDS[kind], resume=True)

    states = killed_states(begin_or_resume, out, tmp_path / "states")
    assert len(states) > 20
    for number, state in enumerate(states):
        shutil.rmtree(out)
        shutil.copytree(state, out)
        begin_or_resume()
        assert outcome(out) == uninterrupted(kind), f"killed in state {number}"


def step_reached(out: Path) -> int:
    """The step that is committed; -1 where none is."""
    state = out / "training" / "state.json"
    return int(json.loads(state.read_text(encoding="utf-8"))["step"]) if state.exists() else -1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_run_killed_many_times_resumes_exactly(
    small_base: Path, questions: Path, tmp_path: Path, processes: Any, kind: str
) -> None:
    steps = 80
    whole, out = tmp_path / "whole", tmp_path / "out"
    instruct_in_process(small_base, questions, whole, kind, steps)
    random.seed(0)
    n_killed = 0
    for _ in range(6):
        before = step_reached(out)
        arguments = (small_base, questions, out, kind, steps)
        child = processes.Process(target=instruct_in_process, args=arguments)
        child.start()
        while child.is_alive() and step_reached(out) == before:
            time.sleep(0.002)
        child.join(random.uniform(0, 0.1))
        child.kill()
        child.join()
        n_killed += child.exitcode == -signal.SIGKILL
    assert n_killed  # how often is a matter of the machine's speed
    instruct_in_process(small_base, questions, out, kind, steps)
    assert outcome(out) == outcome(whole)
