"""Kill a training run with SIGKILL at random moments, resume it, and compare the final weights.

    python tests/tools/kill_and_resume.py [KILLS] [SEED] [PROCESSES] [OPTION...]

Every run is a real `llmkit train --resume`; of several processes under torchrun, one is killed.
Options, such as --shard, are those of `train`. Prints the step that each kill found, and fails if
the weights, the optimizer or the metrics differ from those of a run that nothing stopped.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import psutil

from llmkit.data.tales import tales

CONFIG = """
[model]
n_layer = 2
n_head = 2
n_embd = 64
context_length = 64
dropout = 0.1

[training]
steps = 600
batch_size = 4
eval_interval = 5
eval_tokens = 256
"""


def main(kills: int = 20, seed: int = 0, processes: int = 1, *options: str) -> None:
    """Run, kill, resume, compare."""
    random.seed(seed)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    llmkit = [sys.executable, *(torchrun if processes > 1 else ["-P"]), "-m", "llmkit"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tales.txt").write_text("<|endoftext|>".join(islice(tales(5), 300)))
        (folder / "run.toml").write_text(CONFIG)
        command = [*llmkit, "train", *options, "--data", str(folder / "tales.txt"), "--resume"]
        command += ["--config", str(folder / "run.toml"), "--vocab-size", "400", "--out"]
        whole, out = folder / "whole", folder / "out"
        started = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, capture_output=True)
        seconds = time.monotonic() - started
        for kill in range(1, kills + 1):
            process = subprocess.Popen(
                [*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            before = step(out)
            limit = time.monotonic() + seconds  # every third kill: while nothing is trained yet
            while kill % 3 and step(out) == before and time.monotonic() < limit:
                time.sleep(0.005)
            time.sleep(random.uniform(0, seconds / 20))
            random.choice(psutil.Process(process.pid).children() or [process]).kill()
            process.wait()
            print(f"kill {kill}: step {step(out)}", flush=True)
        subprocess.run([*command, str(out)], check=True, capture_output=True)
        for file in ("model.safetensors", "training/optimizer.safetensors"):
            assert (out / file).read_bytes() == (whole / file).read_bytes(), file
        assert metrics(out) == metrics(whole)
        print(f"{kills} kills: weights, optimizer and metrics are equal bit for bit")


def step(out: Path) -> int:
    """The step that is committed; -1 where none is."""
    state = out / "training" / "state.json"
    return int(json.loads(state.read_text())["step"]) if state.exists() else -1


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without times."""
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    times = ("elapsed_s", "tokens_per_s")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
