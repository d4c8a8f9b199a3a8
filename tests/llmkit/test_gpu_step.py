"""The lines of tests/benchmarks/bench_gpu_step.py, on the CPU and without compiling."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from llmkit.architectures.gpt2 import PRESETS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_gpu_step.py"


def test_bench_prints_each_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rented GPU is paid by the minute: the script has to run at the first try.
    spec = importlib.util.spec_from_file_location("bench_gpu_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    monkeypatch.setattr(bench, "VOCAB_SIZE", 50)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16}
    monkeypatch.setitem(PRESETS, "nano", sizes)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    options = ["--cpu", "--preset", "nano", "--sequences", "1", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu_step.py", *options])
    bench.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {row[0]: row for row in lines if len(row) == 8}
    settings = ("eager, adamw", "compiled, adamw", "compiled, muon")
    assert {f"{setting}, micro-batch 1" for setting in settings} <= set(rows)
    losses = [float(row[-1]) for name, row in rows.items() if name != "setting"]
    assert losses == pytest.approx([3.9] * len(losses), abs=0.2)  # ln 50
