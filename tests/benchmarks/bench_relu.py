"""Mean KL of a ReLU model's GGUF files by the factor a of relu(x) = gelu(a x) / a.

    python tests/benchmarks/bench_relu.py CHECKPOINT [QUANT...]

CHECKPOINT was trained with `activation = "relu"` in the table [model] of --config.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from llmkit.architectures import gpt2
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.export.evaluation.divergence import joined
from llmkit.export.evaluation.eval_data import compared_sequences
from llmkit.export.evaluation.file_divergence import divergences
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.gguf.writer import write_gguf
from llmkit.quantization.tensor_types import quantization

FACTORS = (8, 16, 32, 64, 128, 256, 1024, 4096)
QUANTS = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "iq4_nl"]


def main(folder: Path, quants: list[str]) -> None:
    """Print one line per type."""
    checkpoint = load_checkpoint(folder)
    sequences = compared_sequences(checkpoint, None, 2048)
    with tempfile.TemporaryDirectory() as name:
        for quant in quants:
            for factor in FACTORS:
                gpt2._relu_scale = lambda _, scale=float(factor): scale  # type: ignore[misc]
                path = Path(name) / f"{quant}-{factor}.gguf"
                write_gguf(checkpoint, path, quantization(quant), "bench")
                (found,) = divergences(checkpoint, [read_gguf(path)], sequences, among=None)
                print(f"{quant} {factor}: {joined(found).mean_kl:.2e}", flush=True)
                path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or QUANTS)
