"""Ctrl-C, a kill and a full disk at many moments of real processes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig

pytestmark = pytest.mark.slow

RUN = "from llmkit.cli import run; run()"
LLMKIT = [sys.executable, "-P", "-c", RUN]
# Ctrl-C at the moment when Python begins to look for a module.
INTERRUPTED_AT = """
import signal, sys
class Interrupt:
    def find_spec(name, path, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
"""
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
def train_arguments(tmp_path: Path, corpus: Path) -> list[str]:
    config = tmp_path / "small.toml"
    config.write_text(SMALL_RUN)
    words = f"train --data {corpus} --config {config} --vocab-size 400 --steps 60 --resume"
    return [*words.split(), "--out"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def start_training(command: list[str], out: Path) -> subprocess.Popen[str]:
    """A process that has saved a step more than there was."""
    before = step_saved(out)
    process = subprocess.Popen(
        [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while step_saved(out) == before:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def step_saved(out: Path) -> int:
    state = out / "training" / "state.json"
    return int(json.loads(state.read_text())["step"]) if state.exists() else 0


def losses(checkpoint: Path) -> list[tuple[int, float, float]]:
    lines = (checkpoint / "training" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["step"], record["train_loss"], record["val_loss"]) for record in records]


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_killed_interrupted_and_resumed_gives_the_same_losses_bit_for_bit(
    tmp_path: Path, train_arguments: list[str]
) -> None:
    command = [*LLMKIT, *train_arguments]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = run([*command, str(whole)])
    assert done.returncode == 0, done.stderr
    with start_training(command, stopped) as killed:
        killed.kill()
    assert 0 < step_saved(stopped) < 60
    with start_training(command, stopped) as interrupted:
        interrupted.send_signal(signal.SIGTERM)  # as docker stop and Slurm end a process
        _, errors = interrupted.communicate()
    assert interrupted.returncode == 143, errors
    assert "Traceback" not in errors
    step = step_saved(stopped)
    assert f"step {step} " in errors
    assert "--resume" in errors
    assert step < 60
    assert not half_written(tmp_path)
    last = run([*command, str(stopped)])
    assert last.returncode == 0, last.stderr
    validation = [(step, val) for step, _, val in losses(stopped)]
    assert validation == [(step, val) for step, _, val in losses(whole)]
    weights = "model.safetensors"
    assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()
    assert not half_written(tmp_path)


@pytest.mark.parametrize(
    "module", ["llmkit.cli.main", "typer", "llmkit.training", "torch", "llmkit.training.loop"]
)
def test_ctrl_c_while_it_loads_is_one_line_and_exit_code_130(
    module: str, tmp_path: Path, train_arguments: list[str]
) -> None:
    program = INTERRUPTED_AT.format(module=module) + RUN
    stopped = run([sys.executable, "-P", "-c", program, *train_arguments, str(tmp_path / "out")])
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == "llmkit: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_full_disk_is_one_line_and_keeps_what_was_there(
    tmp_path: Path, tiny_checkpoint: Path, train_arguments: list[str]
) -> None:
    limited = [
        sys.executable,
        "-c",
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "os.execv(sys.argv[1], sys.argv[1:])",
    ]
    out = tmp_path / "export"
    export(tiny_checkpoint, out, QuantConfig(["f16"]), prove=False)
    before = {path: path.read_bytes() for path in out.iterdir()}
    again = ["export", str(tiny_checkpoint), "--quant", "f16", "--out", str(out)]
    for arguments in (again, [*train_arguments, str(tmp_path / "trained")]):
        full = run([*limited, *LLMKIT, *arguments])
        assert full.returncode == 2
        error = full.stderr.splitlines()[-1]
        assert error.startswith("llmkit: cannot write"), full.stderr
        assert "Traceback" not in full.stderr
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert not half_written(tmp_path)
