"""Peak memory and CPU seconds of a training step, against transformers' GPT2LMHeadModel.

    python tests/benchmarks/bench_training_memory.py [PRESET] [SEQUENCES]

The same batch for transformers, for llmkit with whole logits, in chunks, and with checkpointing.
AdamW, bfloat16 products, one thread; each way in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import time

WAYS = ("transformers", "whole logits", "logits in chunks", "and activation checkpointing")


def step(way: str, preset: str, n_sequences: int) -> None:
    """One step: print its peak memory in bytes and its CPU seconds."""
    import torch
    import torch.nn.functional as F

    from llmkit.architectures.registry import family_of, model_config, new_model
    from llmkit.memory import keep_freed_memory, peak_rss_bytes
    from llmkit.training.cross_entropy import head_cross_entropy

    torch.set_num_threads(1)
    config = model_config(preset, 50257)
    if way == WAYS[0]:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(**family_of(config).huggingface.config(config, False)))
    else:
        keep_freed_memory()  # as the training loop does
        model = new_model(config)
        model.recompute_blocks = way == WAYS[3]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=way != WAYS[0])
    tokens = torch.randint(50257, (n_sequences, config.context_length + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        if way == WAYS[0]:
            loss = model(inputs, labels=inputs).loss
        elif way == WAYS[1]:
            logits = model(inputs).float().flatten(0, 1)
            loss = F.cross_entropy(logits, targets.flatten())
        else:
            hidden = model.hidden_states(inputs)
            loss = head_cross_entropy(hidden, model.head_weight, targets) / targets.numel()
    loss.backward()
    optimizer.step()
    print(peak_rss_bytes(), time.process_time() - started)


def main(preset: str = "gpt2", n_sequences: str = "4") -> None:
    """Print a line for each way, with its memory as a share of that of transformers."""
    print(f"{preset}, {n_sequences} sequences | peak GB | of transformers' | CPU s")
    peaks = []
    for way in WAYS:
        command = [sys.executable, "-P", __file__, preset, n_sequences, way]
        run = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
        peak, seconds = map(float, run.stdout.split())
        peaks.append(peak)
        print(f"{way} | {peak / 1e9:.1f} | {peak / peaks[0]:.2f} | {seconds:.0f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        step(sys.argv[3], sys.argv[1], int(sys.argv[2]))
    else:
        main(*sys.argv[1:])
