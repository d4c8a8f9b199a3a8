"""Two processes on gloo train what one trains, whole or divided, also after a kill."""

from __future__ import annotations

import runpy
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from process_runs import KILLED, Job, losses, raised, run_jobs, together
from training_runs import metrics, run, snapshot

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError
from llmkit.training import dry_run
from llmkit.training.run import opened_run
from llmkit.training.run_folder import RunFolder

STEPS = 50
EQUAL = 1e-6  # nats; losses are about 5
OPTIONS: dict[str, Any] = {
    "model": {"n_layer": 2},
    # Micro-batches add up in each process; Muon needs whole matrices.
    "training": {"steps": STEPS, "batch_size": 8, "micro_batch": 2, "eval_interval": 20},
}
CHECKPOINTING = {"training": {**OPTIONS["training"], "activation_checkpointing": True}}


@pytest.fixture(scope="module")
def folder(short_text: Path, processes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two. Tests must not write into it."""
    made = tmp_path_factory.mktemp("processes")

    def job(name: str, **more: Any) -> Job:
        return short_text, made / name, {**OPTIONS, **more}

    alone = processes.Process(
        target=run_jobs, args=([job("one"), job("one-then-two", stop_at=30)],)
    )
    alone.start()
    alone.join()
    jobs = [
        job("ddp"),
        job("shard", shard=True, **CHECKPOINTING),
        job("bfloat16", shard=True, bfloat16=True, training={"steps": 2, "batch_size": 2}),
        job("interrupted", signal_at=(1, 10, signal.SIGINT)),
        job("uneven", training={**OPTIONS["training"], "batch_size": 9}),
        job("one-then-two", shard=True, resume=True),
        job("killed", shard=True, signal_at=(1, 30, signal.SIGKILL)),
    ]
    assert together(processes, jobs) == [0, KILLED]
    for name in ("ddp", "one"):
        shutil.copytree(made / "killed", made / f"killed-then-{name}")
        shutil.copy(made / "killed.losses", made / f"killed-then-{name}.losses")
    assert together(processes, [job("killed-then-ddp", resume=True)]) == [0, 0]
    alone = processes.Process(target=run_jobs, args=([job("killed-then-one", resume=True)],))
    alone.start()
    alone.join()
    return made


def test_a_divided_model_trains_and_evaluates_in_bfloat16(folder: Path) -> None:
    assert raised(folder / "bfloat16") == ["nothing", "nothing"]
    assert len(metrics(folder / "bfloat16")) == 1


@pytest.mark.parametrize(
    "name", ["ddp", "shard", "one-then-two", "killed-then-ddp", "killed-then-one"]
)
def test_losses_are_those_of_one_process(folder: Path, name: str) -> None:
    one = losses(folder / "one")
    assert len(one) == STEPS
    assert one[-1] < one[0] - 0.5
    assert losses(folder / name) == pytest.approx(one, abs=EQUAL)
    for found, wanted in zip(metrics(folder / name), metrics(folder / "one"), strict=True):
        for value in ("train_loss", "val_loss", "grad_norm"):
            assert found[value] == pytest.approx(wanted[value], abs=EQUAL)


def test_checkpoint_of_a_divided_model_is_like_any_other(folder: Path) -> None:
    one, shard = (snapshot(folder / name) for name in ("one", "shard"))
    sizes = (
        {Path(path).name: len(data) for path, (_, data) in run.items()} for run in (one, shard)
    )
    for a, b in zip(*(sorted(size.items()) for size in sizes), strict=True):
        assert a == b or not a[0].endswith((".safetensors", ".tokens"))
    weights = (
        load_checkpoint(folder / name).load_model().state_dict() for name in ("one", "shard")
    )
    for found, wanted in zip(*(each.values() for each in weights), strict=True):
        assert (found - wanted).abs().max() < 1e-4


def test_interrupt_of_one_process_saves_the_same_step_in_all(folder: Path) -> None:
    assert raised(folder / "interrupted") == ["KeyboardInterrupt", "OtherProcessError"]
    assert len(losses(folder / "interrupted")) == 11


def test_only_the_first_process_that_fails_says_why(folder: Path) -> None:
    assert raised(folder / "uneven") == ["ConfigError", "OtherProcessError"]
    assert not (folder / "uneven").exists()
    assert raised(folder / "killed") == ["LlmkitError"]  # of the one that lives


def test_what_does_not_train_in_several_processes_says_so(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        run(short_text, tmp_path / "out", shard=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with (
        pytest.raises(ConfigError, match="torchrun"),
        opened_run(RunFolder(tmp_path / "out"), {}, False, pytest.fail),  # as fine-tuning does
    ):
        pass
    with pytest.raises(ConfigError, match="torchrun"):
        dry_run(short_text)
    assert not (tmp_path / "out").exists()


def test_llmkit_is_a_module_that_torchrun_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["llmkit", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("llmkit", run_name="__main__")
