"""Generation of 512 tokens with a GPT-2 124M shape, with the cache and without.

    python tests/benchmarks/bench_generation.py [TOKENS] [EVERY]

With the cache every token is computed. Without it the model reads the whole text for each token:
this is timed at every EVERY-th length (32 unless given; 1 times all) and counts EVERY times. Both
alternate in one run, so that other work on the machine slows both.
"""

from __future__ import annotations

import sys
import time

import torch

from llmkit.architectures.gpt2 import GPT
from llmkit.architectures.registry import model_config
from llmkit.generation import ModelReader
from llmkit.sampling import Sampling

PROMPT = [464, 3290]


@torch.inference_mode()
def main(n_tokens: int, every: int) -> None:
    """Print seconds, tokens per second and the ratio."""
    torch.manual_seed(0)
    model = GPT(model_config("gpt2", 50257)).eval()
    reader, greedy = ModelReader(model), Sampling(temperature=0)
    ids = list(PROMPT)
    cached = uncached = 0.0
    for number in range(n_tokens):
        started = time.perf_counter()
        logits = reader.read(ids[-1]) if number else reader.start(ids)
        new = int(greedy.distribution(logits, ids).ids[0])
        cached += time.perf_counter() - started
        if number % every == every // 2:
            started = time.perf_counter()
            hidden = model.hidden_states(torch.tensor([ids]))[0, -1]
            other = int(model.logits(hidden).argmax())
            uncached += every * (time.perf_counter() - started)
            assert new == other, (number, new, other)
        ids.append(new)
    for name, seconds in (("with cache", cached), ("without", uncached)):
        print(f"{name}: {seconds:.1f} s, {n_tokens / seconds:.1f} tokens/s")
    print(f"ratio: {uncached / cached:.1f}")


if __name__ == "__main__":
    main(*(int(word) for word in (*sys.argv[1:], *("512", "32")[len(sys.argv) - 1 :])))
