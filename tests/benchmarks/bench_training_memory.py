"""Peak memory and CPU seconds of a training step: whole logits, in chunks, and with checkpointing.

    python tests/benchmarks/bench_training_memory.py [PRESET] [SEQUENCES]

AdamW, bfloat16 products, one thread; each way in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time

WAYS = ("whole logits", "logits in chunks", "and activation checkpointing")


def step(way: str, preset: str, n_sequences: int) -> None:
    """One step and its line."""
    import torch
    import torch.nn.functional as F

    from llmkit.architectures.registry import model_config, new_model
    from llmkit.memory import peak_rss_bytes
    from llmkit.training.cross_entropy import head_cross_entropy

    torch.set_num_threads(1)
    model = new_model(model_config(preset, 50257)).train()
    model.recompute_blocks = way == WAYS[2]
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(50257, (n_sequences, model.config.context_length + 1))
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden_states(tokens[:, :-1])
        if way == WAYS[0]:
            logits = model.logits(hidden).float().flatten(0, 1)
            loss = F.cross_entropy(logits, tokens[:, 1:].flatten())
        else:
            loss = head_cross_entropy(hidden, model.head_weight, tokens[:, 1:])
            loss = loss / tokens[:, 1:].numel()
    loss.backward()
    optimizer.step()
    seconds = time.process_time() - started
    print(
        f"{preset}, {way}: {peak_rss_bytes() / 1e9:.1f} GB, {seconds:.0f} CPU seconds", flush=True
    )


if __name__ == "__main__":
    if len(sys.argv) > 3:
        step(sys.argv[3], sys.argv[1], int(sys.argv[2]))
    else:
        preset = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
        n_sequences = sys.argv[2] if len(sys.argv) > 2 else "4"
        for way in WAYS:
            command = [sys.executable, "-P", __file__, preset, n_sequences, way]
            subprocess.run(command, check=True)
