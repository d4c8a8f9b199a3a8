"""Peak memory of the tensors of a training step in one of several processes.

    torchrun --nproc-per-node 2 tests/benchmarks/bench_shard.py [--shard]

GPT-2's width with 18 layers, 166M parameters, a sequence of 256 tokens in each process. Counts
bytes of tensors: what malloc keeps for the next step, and gloo's buffers, are not of interest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch.distributed._tools.mem_tracker import MemTracker

from llmkit.architectures.registry import model_config
from llmkit.training.config import training_config
from llmkit.training.distributed import joined
from llmkit.training.loop import TrainingLoop
from llmkit.training.micro_batch import RandomTokens
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState


def main() -> None:
    """Print a line for rank 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with joined(options.device, options.shard) as (processes, device):
        sizes = model_config("gpt2", 50257, n_layer=18, context_length=256)
        config = training_config(
            "gpt2", batch_size=processes.world, micro_batch=1, optimizer="adamw"
        )
        task = RandomTokens(config, sizes)
        task.processes = processes
        state = RunState({}, {})
        loop = TrainingLoop(RunFolder(Path()), state, config, task, device, processes=processes)
        n = sum(p.numel() for p in loop.model.parameters())
        float(loop.step(0))
        tracker = MemTracker()
        tracker.track_external(loop.model, *loop.optimizers)
        with tracker:
            float(loop.step(1))
        peak = sum(
            sizes["Total"]
            for where, sizes in tracker.get_tracker_snapshot("peak").items()
            if where.type == device.type
        )
        if processes.rank == 0:
            print(f"{n / 1e6:.0f}M parameters, {processes.world} processes: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
