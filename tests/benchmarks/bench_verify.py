"""Seconds and peak memory of `llmkit verify` for a preset with random weights.

    python tests/benchmarks/bench_verify.py [PRESET] [QUANT...]

gpt2-xl takes 6.2 GB of disk for its checkpoint, in a temporary folder, and the file's size.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_export import write_checkpoint

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.export.gguf.writer import write_gguf
from llmkit.quantization.tensor_types import quantization

# As its own process, because the peak is a process's.
VERIFY = """
import json, sys, time
from pathlib import Path
from llmkit.api import verify
from llmkit.memory import peak_rss_bytes
started = time.perf_counter()
proof = verify(Path(sys.argv[1]), Path(sys.argv[2]))
failed = [f"{check.name}: {check.detail}" for check in proof.checks if not check.passed]
figures = time.perf_counter() - started, time.process_time(), peak_rss_bytes() / 1e9
print(json.dumps([*figures, failed]))
"""


def main(preset: str, quants: list[str]) -> None:
    """Print one line per type."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name) / "checkpoint"
        n_bytes = write_checkpoint(folder, preset)
        print(f"{preset}: {n_bytes / 1e9:.2f} GB of float32", flush=True)
        for quant in quants:
            gguf = Path(name) / f"bench-{quant}.gguf"
            write_gguf(load_checkpoint(folder), gguf, quantization(quant), "bench")
            command = [sys.executable, "-P", "-c", VERIFY, str(folder), str(gguf)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            seconds, cpu_seconds, peak, failed = json.loads(output.splitlines()[-1])
            print(
                f"{quant}: {seconds:.0f} s, {cpu_seconds:.0f} s of processors, {peak:.2f} GB peak",
                *failed,
                sep="\n  ",
                flush=True,
            )
            gguf.unlink()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gpt2", sys.argv[2:] or ["f16", "q8_0", "q4_0"])
