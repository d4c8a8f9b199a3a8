"""Milliseconds of a training step of the demo's model on the CPU, in pairs of settings.

    python tests/benchmarks/bench_training.py [ROUNDS]

Each round runs AdamW and Muon, with float32 and bfloat16 products, and with OpenMP threads that
sleep while they wait (llmkit's setting) or OpenMP's default, every combination in a process of
its own.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time

STEPS = 6


def step_milliseconds(products: str, optimizer: str) -> float:
    """Median over a few steps of the demo's size."""
    import torch
    import torch.nn.functional as F

    from llmkit.architectures.gpt2 import GPT
    from llmkit.architectures.registry import model_config
    from llmkit.demo import MODEL
    from llmkit.training.config import TrainingConfig
    from llmkit.training.optimizer import make_optimizers

    model = GPT(model_config("nano", 1512, **MODEL))
    optimizers = make_optimizers(model, TrainingConfig(optimizer=optimizer))
    tokens = torch.randint(0, 1512, (16, model.config.context_length + 1))
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=products == "bfloat16"):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def main(rounds: int) -> None:
    """Print the median of each combination."""
    choices = (("float32", "bfloat16"), ("adamw", "muon"), ("sleeping", "default"))
    found: dict[tuple[str, ...], list[float]] = {}
    for _ in range(rounds):
        for combination in itertools.product(*choices):
            products, optimizer, waiting = combination
            policy = {"OMP_WAIT_POLICY": "PASSIVE"} if waiting == "sleeping" else {}
            command = [sys.executable, "-P", __file__, products, optimizer]
            run = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | policy
            )
            found.setdefault(combination, []).append(float(run.stdout))
    for (products, optimizer, waiting), times in found.items():
        median = statistics.median(times)
        print(f"{products}, {optimizer}, {waiting} threads: {median:.0f} ms a step")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(step_milliseconds(*sys.argv[1:]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
