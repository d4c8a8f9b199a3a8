"""Seconds and peak memory of `llmkit export` for a preset with random weights.

    python tests/benchmarks/bench_export.py [PRESET] [QUANT...]

gpt2-xl takes 6.2 GB of disk for its checkpoint, in a temporary folder.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from string import ascii_lowercase

import torch

from llmkit.architectures.gpt2 import GPT
from llmkit.architectures.registry import model_config
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.tokenizer_training import train_bpe

PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
EXPORT = """
import sys
from pathlib import Path
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
export(Path(sys.argv[1]), Path(sys.argv[2]), QuantConfig([sys.argv[3]]), name="bench", prove=False)
print(Path("/proc/self/status").read_text())
"""


def write_checkpoint(folder: Path, preset: str) -> int:
    """A checkpoint with GPT-2's 50,257 tokens; returns its size in bytes."""
    letters = random.Random(0).choices(f"{ascii_lowercase} ", k=600_000)
    tokenizer = train_bpe(["".join(letters)], 50_257)  # merges, as GPT-2 has them
    torch.manual_seed(0)
    config = model_config(preset, tokenizer.vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    save_config(folder, CheckpointConfig(config, COMPLETION))
    save_tensors(folder / "model.safetensors", GPT(config).state_dict(), 0)
    return (folder / "model.safetensors").stat().st_size


def main(preset: str, quants: list[str]) -> None:
    """Print one line per type."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        checkpoint, out = Path(name) / "checkpoint", Path(name) / "export"
        n_bytes = write_checkpoint(checkpoint, preset)
        print(f"{preset}: {n_bytes / 1e9:.2f} GB of float32")
        for quant in quants:
            started = time.perf_counter()
            command = [sys.executable, "-P", "-c", EXPORT, str(checkpoint), str(out), quant]
            status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds = time.perf_counter() - started
            peak = PEAK.search(status)
            memory = f"{int(peak.group(1)) / 1e6:.2f} GB peak" if peak else "peak unknown"
            size = (out / f"bench-{quant}.gguf").stat().st_size
            print(f"{quant}: {seconds:.1f} s, {size / 1e9:.2f} GB, {memory}", flush=True)
            (out / f"bench-{quant}.gguf").unlink()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gpt2", sys.argv[2:] or ["f16", "q8_0", "q4_0"])
