"""Seconds, processor seconds and peak memory of error feedback through a preset of random weights.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_gptq.py [PRESET] [TYPE] [TOKENS]

All matrices of gpt2 (124M parameters, 50,257 tokens) in q4_0, calibrated with 32,768 tokens, unless
others are given. The peak is of the whole process, with PyTorch and the model's weights.
"""

from __future__ import annotations

import sys
import time

import torch

from llmkit.architectures.gpt2 import GPT
from llmkit.architectures.registry import model_config, tensor_specs
from llmkit.export.quantization.calibration import DEFAULT_TOKENS
from llmkit.memory import peak_rss_bytes
from llmkit.quant import quant_type
from llmkit.quantization.walk import error_feedback

VOCABULARY = 50_257


def main(preset: str, quant: str, n_tokens: int) -> None:
    """Print the model's size, then what it took."""
    torch.manual_seed(0)
    config = model_config(preset, VOCABULARY)
    model = GPT(config).eval()
    length = min(config.context_length, n_tokens)
    tokens = torch.randint(VOCABULARY, (n_tokens // length, length))
    types = {
        spec.checkpoint_name: quant_type(quant) for spec in tensor_specs(config) if spec.is_matrix
    }
    print(
        f"{preset}: {model.n_parameters() / 1e6:.0f}M parameters, {len(types)} matrices in {quant},"
        f" {tokens.numel()} tokens, {torch.get_num_threads()} threads",
        flush=True,
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    error_feedback(model, types, tokens)
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"{wall:.0f} s, {cpu:.0f} s of processors, {peak_rss_bytes() / 1e9:.2f} GB peak")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        given[0] if given else "gpt2",
        given[1] if len(given) > 1 else "q4_0",
        int(given[2]) if len(given) > 2 else DEFAULT_TOKENS,
    )
