"""Prints what docs/parity.md states: llama.cpp's distance from the reference in units of the
reference's distance from itself, for models of many kinds and for a matrix that is 1 % off.

    python tests/benchmarks/bench_parity.py [CHECKPOINT ...]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "export"))

from gguf_surgery import make_checkpoint
from verify_targets import VARIANTS, write

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.export.evaluation.divergence import Distance
from llmkit.export.evaluation.eval_data import proof_sequences
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.file_tensors import FileTensors, Matrix
from llmkit.export.verify.logits_check import compare_logits
from llmkit.export.verify.target import open_target

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
N_TOKENS = 512
matrix = FileTensors.matrix


def one_percent_off(self: FileTensors, name: str) -> Matrix:
    """As if llama.cpp multiplied with other weights than the file's."""
    found = matrix(self, name)
    return replace(found, weight=found.weight * 1.01) if name == "blk.0.ffn_up.weight" else found


def ratio(checkpoint: Checkpoint, gguf: Path) -> float:
    _, texts = proof_sequences(checkpoint, None, N_TOKENS)
    with LlamaCpp(gguf) as llama:
        found = compare_logits(llama, open_target(checkpoint, gguf), texts)
    return Distance.of(found.conversion).in_units_of(Distance.of(found.noise))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {
            name: make_checkpoint(Path(folder) / str(number), **sizes)
            for number, (name, sizes) in enumerate(VARIANTS.items())
        } | {path: load_checkpoint(Path(path)) for path in sys.argv[1:]}
        print("| model | " + " | ".join(TYPES) + " |")
        for name, checkpoint in checkpoints.items():
            cells = []
            for kind in TYPES:
                gguf = write(checkpoint, Path(folder) / "m.gguf", kind)
                FileTensors.matrix = matrix  # type: ignore[method-assign]
                good = ratio(checkpoint, gguf)
                FileTensors.matrix = one_percent_off  # type: ignore[method-assign]
                cells.append(f"{good:.2f} / {ratio(checkpoint, gguf):.1f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
