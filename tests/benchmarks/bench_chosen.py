"""How far chosen blocks are from their weights, against the limit that `verify` sets.

Run: python tests/benchmarks/bench_chosen.py CHECKPOINT GGUF [GGUF ...]
For each file the row that is farthest: in units of the limit, of what rounding is off in that row,
and of the row's own length.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.export.diagnosis.diagnose import rounded
from llmkit.export.diagnosis.faults import rows_of
from llmkit.export.verify.prequantized_blocks import NearRows, hashes_of
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.export.verify.tensors_check import wanted_tensors
from llmkit.quant import dequantize


def ratios(target: VerifyTarget) -> NDArray[np.float64]:
    """(rows of all chosen tensors, 3)."""
    found = []
    for tensor in wanted_tensors(target):
        if tensor.source not in hashes_of(target.file):
            continue
        near = NearRows.of(tensor.weights(), tensor.stored)
        blocks = rows_of(target.file.tensors[tensor.name])
        distance = near.distances(dequantize(blocks, tensor.stored))
        rounding = near.distances(dequantize(rounded(near.weights, tensor.stored), tensor.stored))
        rounding = np.maximum(rounding, np.median(rounding))
        length = np.square(near.weights).mean(axis=1)
        found.append(np.sqrt(distance[:, None] / np.stack((near.farthest, rounding, length), 1)))
    return np.concatenate(found)


def main() -> None:
    checkpoint = load_checkpoint(Path(sys.argv[1]))
    print(f"{'farthest row':30} {'of limit':>9} {'of rounding':>12} {'of length':>10}")
    for path in map(Path, sys.argv[2:]):
        limit, rounding, length = ratios(open_target(checkpoint, path)).max(axis=0)
        print(f"{path.name:30} {limit:9.2f} {rounding:12.2f} {length:10.3f}")


if __name__ == "__main__":
    main()
