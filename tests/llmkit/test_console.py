from __future__ import annotations

import io
import re
import time
from itertools import pairwise

import pytest
from rich.console import Console
from rich.table import Table

import llmkit.console as console
from llmkit.console import progress, results, say


class Clock:
    """A clock that the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


def test_lines_with_the_time_left_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress("train", 100, "steps") as bar:
        for done in range(1, 101):
            clock.now += 1.0
            bar.update(done, f"loss {done / 10}")
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    shown = [int(line.removeprefix("train: ").split("/")[0]) for line in lines]
    assert lines == [
        f"train: {done}/100 steps, {100 - done} s left, loss {done / 10}" for done in shown
    ]
    assert shown[0] in (9, 10, 11)
    assert all(9 <= later - earlier <= 11 for earlier, later in pairwise(shown))
    assert shown[-1] >= 90


def test_time_left_of_a_resumed_run_counts_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with progress("train", 1000, "steps") as bar:
        clock.now += 60.0  # a slow start is no rate
        bar.update(501)
        for done in range(502, 512):
            clock.now += 2.0
            bar.update(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 501/1000 steps"
    assert lines[-1] == "train: 511/1000 steps, 978 s left"


def test_quick_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 3, "steps") as bar:
        for done in range(1, 4):
            bar.update(done)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_notes_go_to_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]not markup[/bold] :smile: " + "long " * 60 + "/a/path/to/model.gguf 123"
    say(text)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"{text}\n"


def test_results_go_to_stdout_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[a]", ":smile:", title="[red]title")
    table.add_row("[b]", ":smile:")
    results.print("runs/[1]/model.gguf :smile:")
    results.print(table)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("runs/[1]/model.gguf :smile:\n")
    assert all(text in printed.out for text in ("[a]", "[b]", "[red]title"))
    assert printed.out.count(":smile:") == 3


def test_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        console, "notes", Console(file=screen, force_terminal=True, width=100, no_color=True)
    )
    with progress("train", 20, "steps") as bar:
        bar.update(5, "loss 1.5")
        assert bar.bar is not None
        bar.bar.refresh()
        say("a line above the bar")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"train .* 5/20 steps .*loss 1\.5", shown)
    assert "a line above the bar\n" in shown
    assert capsys.readouterr().out == ""
