"""Milliseconds of a training step of the demo's model on the CPU, in pairs of settings.

    python tests/benchmarks/bench_training.py [ROUNDS]

Each round runs float32 and bfloat16 products, with OpenMP threads that sleep while they wait
(llmkit's setting) and with OpenMP's default, every combination in a process of its own.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

STEPS = 6


def step_milliseconds(bfloat16: bool) -> float:
    """Median over a few steps of the demo's size."""
    import torch
    import torch.nn.functional as F

    from llmkit.demo import MODEL
    from llmkit.model.config import gpt_config
    from llmkit.model.gpt import GPT

    model = GPT(gpt_config("nano", 1512, **MODEL))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.randint(0, 1512, (16, model.config.context_length + 1))
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def main(rounds: int) -> None:
    """Print the median of each combination."""
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for products in ("float32", "bfloat16"):
            for waiting in ("sleeping", "default"):
                policy = {"OMP_WAIT_POLICY": "PASSIVE"} if waiting == "sleeping" else {}
                command = [sys.executable, "-P", __file__, products]
                run = subprocess.run(
                    command, capture_output=True, text=True, check=True, env=os.environ | policy
                )
                found.setdefault((products, waiting), []).append(float(run.stdout))
    for (products, waiting), times in found.items():
        print(f"{products}, {waiting} threads: {statistics.median(times):.0f} ms a step")


if __name__ == "__main__":
    argument = sys.argv[1] if len(sys.argv) > 1 else "3"
    if argument.isdigit():
        main(int(argument))
    else:
        print(step_milliseconds(argument == "bfloat16"))
