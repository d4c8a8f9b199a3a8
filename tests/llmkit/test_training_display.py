"""What a run shows while it trains and afterwards."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from training_runs import run

from llmkit.cli.main import main
from llmkit.export.report.runs import loss_figure, runs_table
from llmkit.training import display as shown
from llmkit.training.loop import TrainingLoop, overfits
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_lock import locked
from llmkit.training.run_state import Metrics
from llmkit.training.runs import find_runs

CPU = torch.device("cpu")


def evaluation(step: int, train_loss: float, val_loss: float) -> Metrics:
    return Metrics(
        step=step, tokens=step, train_loss=train_loss, val_loss=val_loss, val_bits_per_byte=2.5,
        lr=1e-3, grad_norm=1.0, tokens_per_s=1.0, elapsed_s=60.0,
    )  # fmt: skip


def test_terminal_shows_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(shown, "notes", console)
    with shown.training_display(20, CPU, flops_per_token=1000) as display:
        display.peak = 4e6
        display.update(7, 3.25, 1000.0, 2e-3, 0.75)
        display.update(8, 3.5, 1000.0, 2e-3, 0.75)
        display.evaluated(evaluation(8, 3.0, 2.75), ["sample: 'once [upon]'"])
        console.print(display)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        *("8/20", "train loss: 3.5000", "validation loss: 2.7500", "bits per byte: 2.500"),
        *("learning rate: 0.002", "gradient norm: 0.75", "tokens/s: 1,000", "time left: "),
        *("25% of", "GB peak", "'once [upon]'"),
    ):
        assert words in text


@pytest.mark.parametrize(
    ("val_losses", "train_losses", "noted"),
    [
        ([3, 2, 2.1, 2.2], [3, 2, 1, 0], True),
        ([3, 2, 2.1, 2.2, 2.3], [3, 2, 1, 0, 0], False),  # it has been said
        ([3, 2, 2.1, 2.2], [3, 2, 1, 1.1], False),
        ([3, 2, 2.1, 2.0], [3, 2, 1, 0], False),
        ([2.1, 2.2], [1, 0], False),
    ],
)
def test_rising_validation_loss_is_noted_once(
    val_losses: list[float], train_losses: list[float], noted: bool
) -> None:
    pairs = enumerate(zip(train_losses, val_losses, strict=True))
    assert overfits([evaluation(n, train, val) for n, (train, val) in pairs]) is noted


@pytest.fixture(scope="module")
def two_runs(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(short_text, folder / "a")
    shutil.copytree(folder / "a", folder / "deep" / "b")
    file = folder / "deep" / "b" / "training" / "state.json"
    state = json.loads(file.read_text())
    state["settings"]["training"]["steps"] = 100
    file.write_text(json.dumps(state))
    (folder / "damaged" / "training").mkdir(parents=True)
    (folder / "damaged" / "training" / "state.json").write_text("{")
    shutil.copytree(folder / "a", folder / "other" / "training")
    file = folder / "other" / "training" / "training" / "state.json"
    file.write_text(json.dumps({**state, "settings": {}}))
    return folder


def test_runs_below_a_folder_are_found(two_runs: Path) -> None:
    a, b = find_runs(two_runs)  # and no kept checkpoint of either
    assert (a.folder, b.folder) == (two_runs / "a", two_runs / "deep" / "b")
    assert (a.status, a.steps, b.status, b.steps) == ("finished", (12, 12), "stopped", (12, 100))
    assert a.n_parameters == 22_880
    assert a.last is not None
    assert a.last.step == 12
    below = two_runs / "deep" / "training" / "c"  # a folder that is called as the runs' own
    shutil.copytree(two_runs / "a", below)
    assert [found.folder for found in find_runs(two_runs)] == [a.folder, b.folder, below]
    shutil.rmtree(below.parent)
    with locked(RunFolder(b.folder)):
        assert [found.status for found in find_runs(two_runs)] == ["finished", "running"]


def test_runs_command_lists_and_plots(
    two_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "losses.svg"
    assert main(["runs", str(two_runs), "--plot", str(picture)]) == 0
    table = capsys.readouterr().out
    for words in ("deep/b", "12/100", "22,880", "muon", "finished", "bits per byte"):
        assert words in table
    assert str(picture) in table
    assert "<svg" in picture.read_text(encoding="utf-8")
    assert main(["runs", str(two_runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [len(one["metrics"]) for one in found] == [3, 3]
    assert main(["runs", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_names_of_runs_are_whole_on_a_narrow_screen(two_runs: Path) -> None:
    console = Console(file=io.StringIO(), width=70)
    console.print(runs_table(find_runs(two_runs), two_runs.parent))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for found in find_runs(two_runs):
        assert str(found.folder.relative_to(two_runs.parent)) in shown


def test_tensorboard_gets_the_lines_of_metrics_jsonl(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install 'llmkit[tensorboard]'",
    )
    original = TrainingLoop.step

    def step(self: TrainingLoop, number: int) -> torch.Tensor:
        if number == 9:
            raise KeyboardInterrupt
        return original(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(short_text, tmp_path / "run", tensorboard=True)
    done = run(short_text, tmp_path / "run", resume=True)
    events = reading.EventAccumulator(str(tmp_path / "run" / "training" / "tensorboard")).Reload()
    for name in ("train_loss", "val_bits_per_byte", "lr", "grad_norm", "tokens_per_s"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(m.step, pytest.approx(getattr(m, name), rel=1e-6)) for m in done.metrics]
        assert found == wanted, name
    assert [m.step for m in done.metrics] == [4, 8, 12]


def test_picture_has_the_losses() -> None:
    metrics = [evaluation(1, 3.0, 3.5), evaluation(2, 2.0, 2.5)]
    (axes,) = loss_figure({"": metrics}).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"training": [3.0, 2.0], "validation": [3.5, 2.5]}
