"""Ctrl-C, a kill and a full disk at many moments of real processes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LLMKIT = [sys.executable, "-P", "-c", "from llmkit.cli import run; run()"]
SMALL_RUN = """
[model]
n_layer = 1
n_head = 2
n_embd = 64
context_length = 64

[training]
batch_size = 4
eval_interval = 4
eval_tokens = 256
"""


@pytest.fixture
def train_command(tmp_path: Path, corpus: Path) -> list[str]:
    config = tmp_path / "small.toml"
    config.write_text(SMALL_RUN)
    words = f"train --data {corpus} --config {config} --vocab-size 400 --steps 60 --resume"
    return [*LLMKIT, *words.split(), "--out"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def losses(checkpoint: Path) -> list[tuple[int, float, float]]:
    lines = (checkpoint / "training" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["train_loss"], record["val_loss"]) for record in records]


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_killed_and_resumed_gives_the_same_losses_bit_for_bit(
    tmp_path: Path, train_command: list[str]
) -> None:
    whole = run([*train_command, str(tmp_path / "whole")])
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "killed"
    for seconds in (3.0, 3.5, 4.0, 4.5, 5.0):
        process = subprocess.Popen(
            [*train_command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = run([*train_command, str(killed)])
    assert last.returncode == 0, last.stderr
    validation = [(step, val) for step, _, val in losses(killed)]
    assert validation == [(step, val) for step, _, val in losses(tmp_path / "whole")]
    weights = "model.safetensors"
    assert (killed / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert not half_written(killed)


def test_ctrl_c_is_one_line_exit_code_130_and_nothing_half_written(
    tmp_path: Path, train_command: list[str]
) -> None:
    out = tmp_path / "out"
    for seconds in (0.1, 0.4, 1.0, 2.0, 3.0, 4.0):
        process = subprocess.Popen(
            [*train_command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(seconds)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        # Python itself, before any line of llmkit runs, ends by the signal.
        assert process.returncode in (130, -signal.SIGINT), errors
        assert "Traceback" not in errors or seconds == 0.1
        assert not half_written(tmp_path)
    last = run([*train_command, str(out)])
    assert last.returncode == 0, last.stderr


def test_full_disk_is_one_line_and_keeps_what_was_there(
    tmp_path: Path, tiny_checkpoint: Path, train_command: list[str]
) -> None:
    limited = [
        sys.executable,
        "-c",
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "os.execv(sys.argv[1], sys.argv[1:])",
    ]
    out = tmp_path / "export"
    export = [*LLMKIT, "export", str(tiny_checkpoint), "--quant", "f16", "--out", str(out)]
    assert run(export).returncode == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    for command in (export, [*train_command, str(tmp_path / "trained")]):
        full = run([*limited, *command])
        assert full.returncode == 2
        error = full.stderr.splitlines()[-1]
        assert error.startswith("llmkit: cannot write"), full.stderr
        assert "Traceback" not in full.stderr
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert not half_written(tmp_path)
