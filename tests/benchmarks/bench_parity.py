"""Prints what docs/parity.md states: llama.cpp's distance from the reference in units of the
reference's distance from itself, for models of many kinds and for a matrix that is 1 % off. With
--power: the smallest damage that `logits` finds, by arithmetic; the damaged file is computed by the
reference in float32, so that no GPU is needed.

    python tests/benchmarks/bench_parity.py [--power] [CHECKPOINT ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "export"))

import numpy as np
import torch
from gguf_surgery import make_checkpoint
from torch import Tensor
from verify_targets import VARIANTS, write

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.export.evaluation.divergence import Distance, Divergence, divergence, larger
from llmkit.export.evaluation.eval_data import proof_sequences
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.activations import Ties, nearest, other_of_near_ties
from llmkit.export.verify.arithmetic import CPU, GPU, Arithmetic, Type
from llmkit.export.verify.file_tensors import FileTensors, Matrix
from llmkit.export.verify.logits_check import LogitsComparison, compare_logits, logits_check
from llmkit.export.verify.reference import Reference
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


PARTS: dict[str, slice | tuple[int, slice]] = {
    "matrix": slice(None),
    "row": (3, slice(None)),
    "scale": (3, slice(32)),  # the weights of one block
}
SIZES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Power:
    """What `logits` finds in a file, by the arithmetic of whoever computes it."""

    def __init__(self, checkpoint: Checkpoint, gguf: Path) -> None:
        self.target = open_target(checkpoint, gguf)
        _, texts = proof_sequences(checkpoint, None, N_TOKENS)
        self.inputs = [torch.as_tensor(text.inputs) for text in texts]
        self.targets = torch.cat([torch.as_tensor(text.targets) for text in texts])
        self.known = {arithmetic: self._known(arithmetic) for arithmetic in (CPU, *GPU)}

    def logits(self, arithmetic: Arithmetic, dtype: torch.dtype, ties: Ties = nearest) -> Tensor:
        reference = Reference(self.target, dtype, ties, arithmetic)
        return torch.cat(list(reference.last_logits(self.inputs, list(map(len, self.inputs)))))

    def _known(self, arithmetic: Arithmetic) -> tuple[Tensor, Divergence]:
        """Of the undamaged file: logits in float64, and the noise as in `compare_logits`."""
        exact = self.logits(arithmetic, torch.float64)
        other = torch.float32 if arithmetic.sums == Type.F16 else torch.float64
        others = (
            self.logits(arithmetic, torch.float32),
            self.logits(arithmetic, other, other_of_near_ties),
        )
        return exact, larger(*(divergence(exact, logits, self.targets) for logits in others))

    def finds(self, size: float, part: str, arithmetic: Arithmetic) -> bool:
        def damaged(tensors: FileTensors, name: str) -> Matrix:
            found = matrix(tensors, name)
            if name != "blk.0.ffn_up.weight":
                return found
            weight = found.weight.clone()
            weight[PARTS[part]] *= 1 + size
            return replace(found, weight=weight)

        FileTensors.matrix = damaged  # type: ignore[method-assign]
        logits = self.logits(arithmetic, torch.float32)
        FileTensors.matrix = matrix  # type: ignore[method-assign]
        wanted, noise = self.known[arithmetic]
        apart = divergence(wanted, logits, self.targets)
        found = LogitsComparison(apart, noise, apart, np.empty((0, 2)), arithmetic)
        return not logits_check(found).passed

    def smallest(self, arithmetic: Arithmetic) -> str:
        """In per cent, of each part."""
        assert not self.finds(0, "matrix", arithmetic)
        cells = []
        for part in PARTS:
            at = bisect_left(SIZES, True, key=lambda size: self.finds(size, part, arithmetic))
            cells.append(f"{100 * SIZES[at]:g}" if at < len(SIZES) else "-")
        return ", ".join(cells)


@torch.inference_mode()
def print_power(checkpoint: Checkpoint, folder: Path) -> None:
    print("| file | " + " | ".join(arithmetic.name for arithmetic in (CPU, *GPU)) + " |")
    for kind in TYPES:
        power = Power(checkpoint, write(checkpoint, folder / "m.gguf", kind))
        cells = [power.smallest(arithmetic) for arithmetic in (CPU, *GPU)]
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--power", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = {
            name: make_checkpoint(Path(folder) / str(number), **sizes)
            for number, (name, sizes) in enumerate(VARIANTS.items())
        } | {str(path): load_checkpoint(path) for path in options.checkpoints}
        if options.power:
            for path in options.checkpoints:
                print_power(checkpoints[str(path)], Path(folder))
            return
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
