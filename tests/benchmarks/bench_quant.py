"""GB/s of float32 input: llmkit.quant, and ggml's own C functions on as many threads.

Run: python tests/benchmarks/bench_quant.py [rounds] [types]
`C` is `ggml_quantize_chunk` on rows split evenly over the threads into memory used before, as
llama-quantize calls it; `NumPy` is our rounding without the library. Each round times all of them
in turn, so that a busy machine slows all alike; the median counts. `CPU` compares the seconds of
processor time that C and we take, which other programs change less than the wall clock's.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf.quants import dequantize as gguf_dequantize
from numpy.typing import NDArray

from llmkit.quant import QuantType, dequantize, quant_names, quant_type, quantize

ROWS, ROW_LENGTH = 8192, 2048  # 64 MiB of float32
SEARCHED_ROWS = 1024  # of types that are packed by searching, which takes 100 times as long
N_THREADS = os.cpu_count() or 1


def ggml_quantizer(
    weights: NDArray[np.float32], ggml_type: gguf.GGMLQuantizationType, row_bytes: int
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
    n_rows, row_length = weights.shape
    out = np.empty((n_rows, row_bytes), dtype=np.uint8)
    part = -(-n_rows // N_THREADS)
    pool = ThreadPoolExecutor(N_THREADS)

    def pack_from(row: int) -> None:
        quantize_chunk(
            int(ggml_type),
            weights.ctypes.data,
            out.ctypes.data,
            row * row_length,
            min(part, n_rows - row),
            row_length,
            None,
        )

    return lambda: list(pool.map(pack_from, range(0, n_rows, part)))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the wall clock, and of all processors together."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def medians(works: list[Callable[[], object]], rounds: int) -> list[tuple[float, float]]:
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return [
        (statistics.median(wall for wall, _ in column), statistics.median(cpu for _, cpu in column))
        for column in zip(*times, strict=True)
    ]


def works_of(qtype: QuantType, weights: NDArray[np.float32]) -> list[Callable[[], object]]:
    """What is timed, in the order of the columns; NumPy's rounding only where it is."""
    packed = quantize(weights, qtype, "bench")
    works: list[Callable[[], object]] = [
        partial(quantize, weights, qtype, "bench"),
        ggml_quantizer(weights, qtype.ggml_type, packed.shape[1]),
        partial(dequantize, packed, qtype),
        partial(gguf_dequantize, packed, qtype.ggml_type),
    ]
    return works if qtype.round is None else [*works, partial(qtype.round, weights)]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    generator = np.random.default_rng(0)
    all_weights = generator.standard_normal((ROWS, ROW_LENGTH), dtype=np.float32) * np.float32(0.02)
    names = sys.argv[2].split(",") if len(sys.argv) > 2 else quant_names()
    print(f"{all_weights.nbytes >> 20} MiB of float32, {N_THREADS} threads, {rounds} rounds")
    print(f"{'GB/s':8} {'quantize':>9} {'C':>7} {'of C':>6} {'CPU':>5}", end="")
    print(f" {'dequantize':>11} {'gguf-py':>8} {'NumPy, 1 thread':>16}")
    for qtype in map(quant_type, names):
        if qtype.needs_importance:
            continue
        weights = all_weights if qtype.round else all_weights[:SEARCHED_ROWS]
        times = medians(works_of(qtype, weights), rounds)
        ours, c, back, gguf_back, *own = (weights.nbytes / 1e9 / wall for wall, _ in times)
        cpu = times[1][1] / times[0][1]
        print(
            f"{qtype.name:8} {ours:9.3f} {c:7.3f} {ours / c:6.0%} {cpu:5.0%} {back:11.2f}", end=""
        )
        print(f" {gguf_back:8.2f}" + "".join(f" {speed:16.2f}" for speed in own))


if __name__ == "__main__":
    main()
