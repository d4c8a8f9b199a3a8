"""GB/s of float32 input: llmkit.quant, gguf-py and one thread of ggml's C, side by side.

Run: python tests/benchmarks/bench_quant.py [rounds]
Each round times all of them in turn, so that a busy machine slows all alike; the median counts.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize
from numpy.typing import NDArray

from llmkit.quant import dequantize, quant_names, quant_type, quantize

ROWS, ROW_LENGTH = 8192, 2048  # 64 MiB of float32


def ggml_quantizer(
    weights: NDArray[np.float32], ggml_type: gguf.GGMLQuantizationType, n_bytes: int
) -> Callable[[], object]:
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    quantize_chunk = library.ggml_quantize_chunk
    quantize_chunk.argtypes = (
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    )
    out = np.empty(n_bytes, dtype=np.uint8)
    return lambda: quantize_chunk(
        int(ggml_type), weights.ctypes.data, out.ctypes.data, 0, *weights.shape, None
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(works: list[Callable[[], object]], rounds: int) -> list[float]:
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((ROWS, ROW_LENGTH), dtype=np.float32) * np.float32(0.02)
    gigabytes = weights.nbytes / 1e9
    print(f"{weights.nbytes >> 20} MiB of float32, {os.cpu_count()} threads, {rounds} rounds")
    print(f"{'GB/s':6} {'quantize':>9} {'gguf-py':>8} {'C, 1 thread':>12}", end="")
    print(f" {'dequantize':>11} {'gguf-py':>8}")
    for name in quant_names():
        qtype = quant_type(name)
        packed = quantize(weights, qtype, "bench")
        works: list[Callable[[], object]] = [
            partial(quantize, weights, qtype, "bench"),
            partial(gguf_quantize, weights, qtype.ggml_type),
            ggml_quantizer(weights, qtype.ggml_type, packed.nbytes),
            partial(dequantize, packed, qtype),
            partial(gguf_dequantize, packed, qtype.ggml_type),
        ]
        ours, theirs, c, back, theirs_back = (gigabytes / s for s in medians(works, rounds))
        print(f"{name:6} {ours:9.2f} {theirs:8.2f} {c:12.2f} {back:11.2f} {theirs_back:8.2f}")


if __name__ == "__main__":
    main()
